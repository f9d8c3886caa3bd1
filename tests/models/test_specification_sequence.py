"""The specification's own sequence with torch's `convert`: its result is saved, loaded, copied, scripted, traced, exported."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from bundler.device.numerics import informative_problem, sqnr_db
from bundler.models.densenet import QuantizableDenseNet
from bundler.models.registry import find_model, load_parser, models
from bundler.quantization import load_fuse_prepare

Weights = Callable[[str], Mapping[str, Tensor]]

# One variant for each kind of block; `test_every_variant_is_made_of_modules_that_are_tried_here` holds the others to it.
TRIED = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "yolov5n")
LARGE = ("resnet50", "yolov3", "yolov4")  # tried in float alone, to save time

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")


@pytest.fixture(autouse=True)
def _engine_as_it_was() -> Any:
    before = torch.backends.quantized.engine
    yield
    torch.backends.quantized.engine = before


def build(name: str, weights: Mapping[str, Tensor] | None, **kwargs: Any) -> Any:
    spec = find_model(name)[1]
    if spec.task == "detection":
        kwargs.setdefault("int8_scope", "whole")
    return load_parser(spec)(weights=weights, num_classes=10, **kwargs)


def trained_or_calibrated(model: Any, pictures: Tensor, *, is_qat: bool) -> Any:
    """Train a few steps, or calibrate."""
    if not is_qat:
        model(pictures)
        return model
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    for batch in pictures.split(2):
        outputs = model(batch)
        optimizer.zero_grad()
        sum(item.square().mean() for item in (outputs if isinstance(outputs, list) else [outputs])).backward()
        optimizer.step()
    return model.eval()


def outputs_of(model: nn.Module, pictures: Tensor) -> Tensor:
    with torch.no_grad():
        outputs: Tensor = model(pictures)
    return outputs


def numbers(model: nn.Module) -> dict[str, float]:
    """Return the scales and zero points that are plain attributes, which a state dict holds only where a module sees to it."""
    return {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, int | float) and ("scale" in key or "zero_point" in key)
    }


@pytest.mark.parametrize("is_qat", [False, True], ids=["ptq", "qat"])
@pytest.mark.parametrize("name", TRIED)
def test_a_converted_model_is_saved_loaded_copied_scripted_and_traced_with_the_same_bits(
    name: str, is_qat: bool, weights_of: Weights, calibration: Tensor, golden: Tensor
) -> None:
    model = build(name, weights_of(name), quantize=True, is_qat=is_qat)
    model = trained_or_calibrated(model, calibration[:4], is_qat=is_qat)
    copied = torch.ao.quantization.convert(model)
    torch.ao.quantization.convert(model, inplace=True)
    wanted = outputs_of(model, golden)
    assert informative_problem(wanted.numpy()) == ""
    assert torch.equal(outputs_of(copied, golden), wanted)

    state_dict = model.state_dict()
    for key, module in model.named_modules():
        if hasattr(module, "scale"):
            assert {f"{key}.scale", f"{key}.zero_point"} <= state_dict.keys(), key
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    fresh = torch.ao.quantization.convert(build(name, None, quantize=True, is_qat=is_qat).eval())
    assert not torch.equal(outputs_of(fresh, golden), wanted)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(outputs_of(fresh, golden), wanted)
    assert numbers(fresh) == numbers(model)

    assert torch.equal(outputs_of(copy.deepcopy(model), golden), wanted)
    assert torch.equal(outputs_of(torch.jit.script(model), golden), wanted)
    if not is_qat:
        assert torch.equal(outputs_of(torch.jit.trace(model, (golden[:2],), check_trace=False), golden), wanted)


@pytest.mark.parametrize("name", TRIED + LARGE)
def test_a_float_model_is_scripted_with_the_same_bits(name: str, golden: Tensor) -> None:
    """torchvision's own can be; YOLOv3 and YOLOv4 have none to compare with."""
    model = build(name, None)
    assert torch.equal(outputs_of(torch.jit.script(model), golden), outputs_of(model, golden))


def test_every_variant_is_made_of_modules_that_are_tried_here() -> None:
    with torch.device("meta"):
        tried = {type(module) for name in (*TRIED, *LARGE) for module in build(name, None).modules()}
        for name in models():
            assert {type(module) for module in build(name, None).modules()} <= tried, name


@pytest.mark.parametrize("engine", ["x86", "fbgemm", "qnnpack"])
@pytest.mark.parametrize("is_qat", [False, True], ids=["ptq", "qat"])
def test_a_densenet_is_converted_by_torch_with_every_engine_and_exported_by_hand(
    is_qat: bool, engine: str, calibration: Tensor, golden: Tensor, tmp_path: Path
) -> None:
    """A small one; torch's own form of its BatchNorms, quantized::batch_norm2d_relu, has no form in ONNX."""
    torch.backends.quantized.engine = engine
    plain = QuantizableDenseNet(8, (2, 1, 1, 1), 16, num_classes=10)
    model = trained_or_calibrated(
        load_fuse_prepare(plain, None, quantize=True, is_qat=is_qat, target=None), calibration[:4], is_qat=is_qat
    )
    torch.ao.quantization.convert(model, inplace=True)
    wanted = outputs_of(model, golden).numpy()
    assert informative_problem(wanted) == ""
    torch.onnx.export(model, (golden,), str(tmp_path / "int8.onnx"), dynamo=False, opset_version=13)
    session = ort.InferenceSession(tmp_path / "int8.onnx", _quiet(), providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {session.get_inputs()[0].name: golden.numpy()})
    assert sqnr_db(wanted, np.asarray(given)) > 15  # they round differently in each layer


@pytest.mark.parametrize(("family", "name"), [("mobilenet_v2", "mobilenet_v2"), ("mobilenet_v3", "mobilenet_v3_small")])
def test_a_process_that_only_imported_the_model_exports_it_by_hand(family: str, name: str, tmp_path: Path) -> None:
    code = f"""
import warnings; warnings.simplefilter("ignore")
import torch
from bundler.models.{family} import {name}
x = torch.randn(1, 3, 64, 64)
model = {name}(quantize=True, is_qat=False)
model(x)
torch.ao.quantization.convert(model, inplace=True)
model(x)
torch.onnx.export(model, (x,), "int8.onnx", dynamo=False, opset_version=13)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ort.InferenceSession(tmp_path / "int8.onnx", _quiet(), providers=["CPUExecutionProvider"])


def _quiet() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # the exporter's own graph holds initializers that nothing reads
    return options
