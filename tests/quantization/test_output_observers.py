"""Which layers give a network's outputs, and that a training for INT8 does not round them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bundler.models.registry import find_model, load_parser
from bundler.quantization import calibrate, convert
from bundler.quantization.output_observers import output_layers
from bundler.quantization.weight_rounding import product
from bundler.targets import find_target

TARGET = find_target("x86").quantization
EXPECTED = {
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


def names(model: nn.Module) -> list[str]:
    layers = output_layers(model)
    return [name for name, module in model.named_modules() if any(module is layer for layer in layers)]


def unrounded(layer: Any, x: Tensor) -> Tensor:
    return product(layer, x, layer.weight_fake_quant(layer.weight), layer.bias)


@pytest.mark.parametrize("name", EXPECTED)
def test_they_are_the_same_ones_in_float_prepared_and_converted(
    name: str, weights_of: Callable[[str], Mapping[str, Tensor]], calibration: Tensor
) -> None:
    weights = weights_of(name)
    prepared = built(name, weights, quantize=True, target=TARGET)
    calibrate(prepared, [calibration[:2]])
    converted = convert(prepared, TARGET)
    assert EXPECTED[name] == names(built(name, weights)) == names(prepared) == names(converted)


def test_a_classifier_that_ends_with_a_convolution_has_no_such_layer() -> None:
    squeeze = nn.Sequential(nn.Linear(3, 3), nn.Unflatten(1, (3, 1, 1)), nn.Conv2d(3, 10, 1), nn.Flatten())
    assert output_layers(squeeze) == []


@pytest.mark.parametrize("name", ["resnet18", "yolov5n"])
def test_training_for_int8_rounds_all_but_them(
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
    rounded = [
        module
        for module in prepared.modules()
        if hasattr(module, "fake_quant_enabled") and hasattr(module, "activation_post_process")
    ]
    assert len(rounded) > 20
    off = [module for module in rounded if not int(module.fake_quant_enabled)]
    assert {id(module) for module in off} == {id(layer.activation_post_process) for layer in layers}
    # Torch's own INT8 needs a range of them nevertheless.
    assert all(float(layer.activation_post_process.calculate_qparams()[0]) != 1.0 for layer in layers)
