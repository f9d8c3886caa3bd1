"""What holds for every variant of the scope table: the specification's promises, from the float model to ONNX Runtime's INT8.

Networks have their full width and depth, and 64 pixels: enough for every layer, and little to compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bundler.device.numerics import informative_problem, sqnr_db
from bundler.graphs.exported_graph import ExportedGraph
from bundler.graphs.exporter import export_onnx
from bundler.graphs.host_runs import agree_with_torch, run_reference
from bundler.models import torchvision_operators  # noqa: F401  before torchvision
from bundler.models.detector import QuantizableDetector
from bundler.models.initialization import random_state_dict
from bundler.models.registry import load_parser, models
from bundler.models.specs import Int8Scope, ModelSpec
from bundler.models.yolov3 import YoloV3
from bundler.models.yolov4 import YoloV4
from bundler.models.yolov5 import YoloV5
from bundler.quantization import DeQuantStub, QuantStub, calibrate, convert, quantized_engine
from bundler.targets import TargetProfile, find_target

import torchvision

CLASSES = 10

# The multiples of depth and width that the published YOLOv5 models are named for.
OURS: Mapping[str, Callable[..., nn.Module]] = {
    "yolov3": YoloV3,
    "yolov4": YoloV4,
    "yolov5n": partial(YoloV5, 1 / 3, 0.25),
    "yolov5s": partial(YoloV5, 1 / 3, 0.5),
    "yolov5m": partial(YoloV5, 2 / 3, 0.75),
    "yolov5l": partial(YoloV5, 1.0, 1.0),
    "yolov5x": partial(YoloV5, 4 / 3, 1.25),
}

# A folded BatchNorm rounds differently: about 2^-24 (-144 dB) for each of up to 270 layers, amplified by those behind it.
# Measured: 98 to 119 dB.
FLOAT_ROUNDING_DB = 80.0
# INT8 of an untrained network at 64 pixels reaches 5 dB (EfficientNet-B7 on fbgemm: each stage costs 3 dB) to 30 dB.
# All zeros would be 0 dB, outputs that have nothing to do with the reference -3 dB.
INT8_FLOOR_DB = 4.0
# One step of rounding in an early layer of an untrained network grows to a dozen at the outputs; measured: 10 to 36.
UNTRAINED_MAX_STEPS = 64
# After training, the reference is the fake-quantized network. Torch's INT8 and ONNX Runtime's differ from it by their rounding
# alone, at 15 to 27 dB, and so either may be nearer; measured: 6 dB nearer to 4 dB further.
TRAINED_SQNR_LOSS_DB = 8.0


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A variant's parser, the plain model with the same weights, and what that one answers on the golden images."""

    spec: ModelSpec
    parser: Callable[..., Any]
    plain: nn.Module
    state_dict: Mapping[str, Tensor]
    reference: NDArray[np.float32]

    def build(self, *, int8_scope: Int8Scope = "whole", **kwargs: Any) -> Any:
        if self.spec.task == "detection":
            kwargs["int8_scope"] = int8_scope
        return self.parser(weights=self.state_dict, num_classes=CLASSES, **kwargs)


@pytest.fixture(scope="module")
def pictures(calibration: Tensor, golden: Tensor) -> Tensor:
    """All 20 both calibrate and are compared: what differs is rounding, not how far a random network's outputs scatter."""
    return torch.cat([calibration, golden])


# What a variant needs is made once, and freed before the next (`tests/conftest.py`).
@pytest.fixture(scope="module", params=list(models()))
def variant(request: pytest.FixtureRequest, pictures: Tensor, memory_given_back: Callable[[], None]) -> Variant:
    memory_given_back()
    _, spec = models()[request.param]
    make = OURS.get(spec.name) or getattr(torchvision.models, spec.name)
    plain = make(num_classes=CLASSES)
    parser = load_parser(spec)
    plain.load_state_dict(random_state_dict(lambda: parser(num_classes=CLASSES), pictures, seed=0))
    state_dict = plain.state_dict()  # the same tensors: there are up to 500 MB of them
    return Variant(spec=spec, parser=parser, plain=plain, state_dict=state_dict, reference=outputs_of(plain.eval(), pictures))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that goes at once: the graphs of all variants together are gigabytes."""
    with TemporaryDirectory() as name:
        yield Path(name)


def outputs_of(model: nn.Module, pictures: Tensor) -> NDArray[np.float32]:
    with torch.inference_mode():
        outputs: NDArray[np.float32] = model(pictures).numpy()
    return outputs


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def exported(variant: Variant, model: nn.Module, pictures: Tensor, path: Path, *, quantized: bool) -> ExportedGraph:
    stays_float = model.float_convolutions() if quantized and isinstance(model, QuantizableDetector) else 0
    return export_onnx(
        model, pictures[:2], path, opset=13, task=variant.spec.task, quantized=quantized, float_layers=stays_float
    )


def test_float_model_is_the_plain_one_bit_for_bit(variant: Variant, pictures: Tensor, folder: Path) -> None:
    assert informative_problem(variant.reference) == ""
    model = variant.build()
    ours, theirs = model.state_dict(), variant.plain.state_dict()
    assert list(ours) == list(theirs)
    assert [value.shape for value in ours.values()] == [value.shape for value in theirs.values()]
    assert isinstance(model, type(variant.plain))
    assert type(model).__name__ == f"Quantizable{type(variant.plain).__name__}"
    assert isinstance(model.quant, QuantStub)
    assert isinstance(model.dequant, DeQuantStub)
    assert not model.training
    outputs = outputs_of(model, pictures)
    assert np.array_equal(outputs, variant.reference)

    graph = exported(variant, model, pictures, folder / "fp32.onnx", quantized=False)
    assert (graph.opset, graph.quantize_nodes, graph.dequantize_nodes, graph.output_step) == (13, 0, 0, None)
    given = run_reference(graph, pictures.numpy(), "all")
    agree_with_torch(graph, given, torch_outputs=outputs, fp32_outputs=outputs, profile=find_target("x86").export)


# A detector's two scopes are spread over the two targets, to save time; `test_detector.py` has all four of the smallest.
@pytest.mark.parametrize(("target", "int8_scope"), [("x86", "backbone"), ("arm64", "whole")], scope="function")
def test_post_training_quantization(
    variant: Variant, target: str, int8_scope: Int8Scope, pictures: Tensor, folder: Path
) -> None:
    profile = find_target(target)
    engine = torch.backends.quantized.engine
    model = variant.build(quantize=True, target=profile.quantization, int8_scope=int8_scope)
    assert not model.training
    assert len(batch_norms(model)) < len(batch_norms(variant.plain))
    assert sqnr_db(variant.reference, outputs_of(model, pictures)) > FLOAT_ROUNDING_DB

    assert calibrate(model, pictures.split(10)) == len(pictures)
    converted = convert(model, profile.quantization)
    assert torch.backends.quantized.engine == engine
    assert sqnr_db(variant.reference, outputs_of(model, pictures)) > FLOAT_ROUNDING_DB  # the prepared model stays a float model
    graph = compare_with_onnx_runtime(variant, converted, profile, pictures, folder)
    assert torch.backends.quantized.engine == engine
    if variant.spec.task == "classification":
        assert graph.float_operators == {}
    if variant.spec.task == "classification" or int8_scope == "whole":
        assert graph.bytes < 0.3 * 4 * sum(value.numel() for value in variant.state_dict.values())  # one byte for a weight


def compare_with_onnx_runtime(
    variant: Variant, converted: nn.Module, profile: TargetProfile, pictures: Tensor, folder: Path, **looser: float
) -> ExportedGraph:
    """Export the converted model, and hold ONNX Runtime to what torch computes with it."""
    with quantized_engine(profile.quantization.engine):
        int8 = outputs_of(converted, pictures)
        graph = exported(variant, converted, pictures, folder / "int8.onnx", quantized=True)
    assert informative_problem(int8) == ""
    assert INT8_FLOOR_DB < sqnr_db(variant.reference, int8) < FLOAT_ROUNDING_DB
    assert graph.opset == 13
    assert graph.quantize_nodes > 0
    assert graph.dequantize_nodes > 0
    limits = profile.export.model_copy(update={"torch_max_steps": UNTRAINED_MAX_STEPS, **looser})
    outputs = run_reference(graph, pictures.numpy(), profile.runtime.graph_optimization_level)
    agree_with_torch(graph, outputs, torch_outputs=int8, fp32_outputs=variant.reference, profile=limits)
    assert sqnr_db(variant.reference, outputs) > INT8_FLOOR_DB
    return graph


def test_quantization_aware_training(variant: Variant, pictures: Tensor, folder: Path) -> None:
    """On one engine here, to save time; `tests/quantization/test_training.py` trains on both."""
    profile = find_target("x86")
    model = variant.build(quantize=True, is_qat=True, target=profile.quantization)
    assert model.training
    assert len(batch_norms(model)) == len(batch_norms(variant.plain))
    assert all(norm.training for norm in batch_norms(model))

    model.apply(torch.ao.quantization.disable_fake_quant).eval()
    assert sqnr_db(variant.reference, outputs_of(model, pictures)) > FLOAT_ROUNDING_DB
    model.apply(torch.ao.quantization.enable_fake_quant).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout | torchvision.ops.StochasticDepth):
            module.p = 1e-9  # a block left out for all four images has no gradient; chance differs between machines

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for batch in pictures[:8].split(4):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model(batch))
        loss.backward()
        assert torch.isfinite(loss)
        optimizer.step()
        assert gradient_problems(model) == []
    assert len(batch_norms(model)) == len(batch_norms(variant.plain))

    # What was trained is the reference: its BatchNorm has other statistics than the float model by now.
    model.apply(torch.ao.quantization.disable_observer).eval()
    trained = replace(variant, reference=outputs_of(model, pictures))
    converted = convert(model, profile.quantization)
    compare_with_onnx_runtime(trained, converted, profile, pictures, folder, torch_sqnr_loss_db=TRAINED_SQNR_LOSS_DB)


def loss_of(outputs: Tensor | list[Tensor]) -> Tensor:
    if isinstance(outputs, Tensor):
        return nn.functional.cross_entropy(outputs, torch.arange(len(outputs)))
    return torch.stack([raw.square().mean() for raw in outputs]).sum()


def gradient_problems(model: nn.Module) -> list[str]:
    """Name each parameter that a step would not train."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and (parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any())
    ]
