"""The eager-mode steps: fusing, calibration, conversion, quantized engines and output layers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bundler.device.numerics import informative_problem, sqnr_db
from bundler.errors import BundlerError
from bundler.models.mobilenet_v3 import mobilenet_v3_small
from bundler.models.registry import find_model, load_parser
from bundler.models.resnet import resnet18
from bundler.quantization import calibrate, convert, get_platform_aware_qconfig, quantized_engine
from bundler.quantization.eager import output_layers
from bundler.quantization.weight_rounding import product
from bundler.targets import TargetProfile, find_target

# Fusing

# One model for each kind of block.
FUSED = ["resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small"]


def count(model: nn.Module, *types: type[nn.Module]) -> int:
    return sum(isinstance(module, types) for module in model.modules())


@pytest.fixture(scope="module", params=FUSED)
def build(request: pytest.FixtureRequest, weights_of: Callable[[str], Mapping[str, Tensor]]) -> Callable[[], Any]:
    parser, weights = load_parser(find_model(request.param)[1]), weights_of(request.param)
    return lambda: parser(weights=weights, num_classes=10)


def test_fusing_for_ptq_folds_every_batch_norm(build: Callable[[], Any], golden: Tensor) -> None:
    model = build()
    with torch.inference_mode():
        before = model(golden).numpy()
        model.fuse_model(is_qat=False)
        after = model(golden).numpy()
    assert count(model, nn.BatchNorm2d) == 0
    assert all(convolution.bias is not None for convolution in model.modules() if isinstance(convolution, nn.Conv2d))
    assert sqnr_db(before, after) > 80  # float rounding of the folded weights; measured: 103 to 111


def test_fusing_for_qat_keeps_every_batch_norm(build: Callable[[], Any], golden: Tensor) -> None:
    model = build()
    norms = count(model, nn.BatchNorm2d)
    with torch.inference_mode():
        before = model(golden)
        model.train().fuse_model(is_qat=True)
        after = model.eval()(golden)
    assert (
        count(model, nn.BatchNorm2d)
        == norms
        == count(model, torch.ao.nn.intrinsic.ConvBn2d, torch.ao.nn.intrinsic.ConvBnReLU2d)
    )
    assert torch.equal(before, after)


def test_fusing_follows_the_mode_of_the_model_by_default(build: Callable[[], Any]) -> None:
    in_eval, in_train = build(), build().train()
    in_eval.fuse_model()
    in_train.fuse_model()
    assert count(in_eval, nn.BatchNorm2d) == 0
    assert count(in_train, nn.BatchNorm2d) == count(build(), nn.BatchNorm2d)


# Calibration


def test_calibration_observes_and_counts_every_image(
    weights_of: Callable[[str], Mapping[str, Tensor]], calibration: Tensor
) -> None:
    prepared = resnet18(weights=weights_of("resnet18"), num_classes=10, quantize=True).train()
    assert calibrate(prepared, calibration[:7].split(3)) == 7
    assert not prepared.training
    observer = prepared.quant.activation_post_process
    assert observer.min_val == calibration[:7].min()
    assert observer.max_val == calibration[:7].max()
    assert all(parameter.grad is None for parameter in prepared.parameters())


def test_calibration_without_images_leaves_the_observers_empty(weights_of: Callable[[str], Mapping[str, Tensor]]) -> None:
    prepared = resnet18(weights=weights_of("resnet18"), num_classes=10, quantize=True)
    assert calibrate(prepared, []) == 0
    observer: Any = prepared.quant.activation_post_process
    assert torch.isinf(observer.min_val)


# Conversion


@pytest.fixture
def weights(weights_of: Callable[[str], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    return weights_of("resnet18")


# The sequence calls torch's `convert`, which warns about the deprecation of quantized tensors.
@pytest.mark.filterwarnings(r"ignore:torch\.quantize_per_tensor, torch\.quantize_per_channel:UserWarning")
def test_the_sequence_of_the_specification(
    weights: Mapping[str, Tensor], target: TargetProfile, calibration: Tensor, golden: Tensor
) -> None:
    with quantized_engine(target.quantization.engine), torch.inference_mode():
        expected = resnet18(weights=weights, num_classes=10)(golden)
        # build full-precision model and prepare for PTQ
        model = resnet18(weights=weights, num_classes=10, quantize=True, is_qat=False, target=target.quantization)
        # Calibration codes here...
        model(calibration)
        # Quantize model after calibration
        torch.ao.quantization.convert(model, inplace=True)
        # get prediction
        output = model(golden)
        assert informative_problem(output.numpy()) == ""
        assert (
            sqnr_db(expected.numpy(), output.numpy()) > 6
        )  # measured: 13 to 16 dB; at 6 dB the noise has half the amplitude of the signal

        prepared = resnet18(weights=weights, num_classes=10, quantize=True, is_qat=False, target=target.quantization)
        prepared(calibration)
        assert torch.equal(convert(prepared, target.quantization)(golden), output)
        # `calibrate` runs in float64: ranges differ in their last bits, and few values are rounded differently.
        prepared = resnet18(weights=weights, num_classes=10, quantize=True, is_qat=False, target=target.quantization)
        calibrate(prepared, [calibration])
        assert sqnr_db(output.numpy(), convert(prepared, target.quantization)(golden).numpy()) > 15


def test_conversion_does_not_change_the_prepared_model(
    weights: Mapping[str, Tensor], target: TargetProfile, calibration: Tensor, golden: Tensor
) -> None:
    prepared = resnet18(weights=weights, num_classes=10, quantize=True, target=target.quantization)
    calibrate(prepared, [calibration])
    with torch.inference_mode():
        before = prepared(golden)
        prepared.train()
        first, again = convert(prepared, target.quantization), convert(prepared, target.quantization)
        assert prepared.training
        assert not first.training
        assert torch.equal(prepared.eval()(golden), before)
        with quantized_engine(target.quantization.engine):
            assert torch.equal(first(golden), again(golden))
            assert not torch.equal(first(golden), before)


def test_the_engine_is_restored_when_the_conversion_fails(target: TargetProfile) -> None:
    before = torch.backends.quantized.engine
    with pytest.raises(Exception, match="qconfig"):
        convert(torch.nn.Sequential(torch.ao.nn.qat.Linear(2, 2, qconfig=None)), target.quantization)
    assert torch.backends.quantized.engine == before


@pytest.mark.filterwarnings("default:must run observer:UserWarning")
def test_converting_a_model_without_calibration_warns() -> None:
    prepared = mobilenet_v3_small(num_classes=10, quantize=True)
    with pytest.warns(UserWarning, match="must run observer before calling calculate_qparams"):
        convert(prepared, get_platform_aware_qconfig())


def test_no_warning_of_torch_is_shown() -> None:
    """In a separate process, because torch emits some warnings only once."""
    code = """
import torch
from bundler.models.resnet import resnet18
from bundler.quantization import calibrate, convert, quantized_engine
from bundler.targets import load_targets

for profile in load_targets():
    target = profile.quantization
    for is_qat in (False, True):
        prepared = resnet18(quantize=True, is_qat=is_qat, target=target)
        calibrate(prepared, [torch.rand(2, 3, 64, 64)])
        with quantized_engine(target.engine):
            convert(prepared, target)(torch.rand(1, 3, 64, 64))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Engines


@pytest.mark.parametrize("name", ["fbgemm", "qnnpack"])
def test_the_engine_is_set_and_restored(name: str) -> None:
    before = torch.backends.quantized.engine
    with quantized_engine(name):
        assert torch.backends.quantized.engine == name
        with quantized_engine("qnnpack" if name == "fbgemm" else "fbgemm"):
            assert torch.backends.quantized.engine != name
        assert torch.backends.quantized.engine == name
    assert torch.backends.quantized.engine == before


def test_the_engine_is_restored_after_an_error() -> None:
    before = torch.backends.quantized.engine
    other = "qnnpack" if before != "qnnpack" else "fbgemm"
    with pytest.raises(KeyError), quantized_engine(other):
        raise KeyError
    assert torch.backends.quantized.engine == before


def test_an_unsupported_engine_is_rejected() -> None:
    before = torch.backends.quantized.engine
    with pytest.raises(BundlerError, match=r"no quantized engine 'xnnpack'.*qnnpack"), quantized_engine("xnnpack"):
        pass
    assert torch.backends.quantized.engine == before


# Output layers

TARGET = find_target("x86").quantization
OUTPUT_LAYERS = {
    "resnet18": ["fc"],
    "mobilenet_v2": ["classifier.1"],
    "mobilenet_v3_small": ["classifier.3"],
    "efficientnet_b0": ["classifier.1"],
    "densenet121": ["classifier"],
    "yolov5n": ["model.24.m.0", "model.24.m.1", "model.24.m.2"],
}


def built(name: str, weights: Mapping[str, Tensor], **kwargs: Any) -> nn.Module:
    _, variant = find_model(name)
    scope = {"int8_scope": "whole"} if variant.task == "detection" else {}
    model: nn.Module = load_parser(variant)(weights=weights, num_classes=10, **scope, **kwargs)
    return model


def names_of_output_layers(model: nn.Module) -> list[str]:
    layers = output_layers(model)
    return [name for name, module in model.named_modules() if any(module is layer for layer in layers)]


def unrounded(layer: Any, x: Tensor) -> Tensor:
    return product(layer, x, layer.weight_fake_quant(layer.weight), layer.bias)


@pytest.mark.parametrize("name", OUTPUT_LAYERS)
def test_output_layers_are_the_same_in_the_float_prepared_and_converted_model(
    name: str, weights_of: Callable[[str], Mapping[str, Tensor]], calibration: Tensor
) -> None:
    weights = weights_of(name)
    prepared = built(name, weights, quantize=True, target=TARGET)
    calibrate(prepared, [calibration[:2]])
    converted = convert(prepared, TARGET)
    assert (
        OUTPUT_LAYERS[name]
        == names_of_output_layers(built(name, weights))
        == names_of_output_layers(prepared)
        == names_of_output_layers(converted)
    )


def test_a_classifier_that_ends_with_a_convolution_has_no_output_layer() -> None:
    squeeze = nn.Sequential(nn.Linear(3, 3), nn.Unflatten(1, (3, 1, 1)), nn.Conv2d(3, 10, 1), nn.Flatten())
    assert output_layers(squeeze) == []


@pytest.mark.parametrize("name", ["resnet18", "yolov5n"])
def test_qat_fake_quantizes_every_output_except_those_of_the_output_layers(
    name: str, weights_of: Callable[[str], Mapping[str, Tensor]], calibration: Tensor
) -> None:
    prepared = built(name, weights_of(name), quantize=True, is_qat=True, target=TARGET)
    layers: list[Any] = [*output_layers(prepared)]
    results: list[tuple[Tensor, Tensor]] = []
    for layer in layers:
        layer.register_forward_hook(lambda module, inputs, output: results.append((output, unrounded(module, inputs[0]))))
    with torch.no_grad():
        prepared(calibration[:8])
    assert len(results) == len(layers)
    for output, expected in results:
        assert torch.equal(output, expected)
    rounded: list[Any] = [
        module
        for module in prepared.modules()
        if hasattr(module, "fake_quant_enabled") and hasattr(module, "activation_post_process")
    ]
    assert len(rounded) > 20
    off = [module for module in rounded if not int(module.fake_quant_enabled)]
    assert {id(module) for module in off} == {id(layer.activation_post_process) for layer in layers}
    # `convert` needs their ranges nevertheless.
    assert all(float(layer.activation_post_process.calculate_qparams()[0]) != 1.0 for layer in layers)
