"""The SQNR of each layer: its order of magnitude, the layer that a change shows at, and no side effects."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from itertools import takewhile

import pytest
import torch
from torch import Tensor, nn

from bundler.models.registry import find_model, load_parser
from bundler.quantization import LayerSqnr, calibrate, convert, measure_layers, quantized_engine
from bundler.quantization.eager import output_layers
from bundler.targets import find_target

TARGET = find_target("x86").quantization


@pytest.fixture(params=["mobilenet_v2", "resnet18"])
def prepared(
    request: pytest.FixtureRequest, weights_of: Callable[[str], Mapping[str, Tensor]], calibration: Tensor
) -> nn.Module:
    name = request.param
    model: nn.Module = load_parser(find_model(name)[1])(weights=weights_of(name), num_classes=10, quantize=True, target=TARGET)
    calibrate(model, calibration.split(8))
    return model


def measured(reference: nn.Module, changed: nn.Module, images: Tensor) -> tuple[LayerSqnr, ...]:
    converted = convert(changed, TARGET)
    with quantized_engine(TARGET.engine):
        return measure_layers(reference, converted, images.split(2))


def test_every_layer_is_measured_in_order_with_a_ratio_of_8_bits(prepared: nn.Module, calibration: Tensor) -> None:
    layers = measured(prepared, copy.deepcopy(prepared), calibration[:4])
    names = [layer.name for layer in layers]
    assert len(set(names)) == len(names)
    with_weights = [layer for layer in layers if layer.weight_sqnr_db is not None]
    expected = [module for module in prepared.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(with_weights) == len(expected)
    assert any("add" in name for name in names)  # of a FloatFunctional
    # 8 bits give about 40 dB for values distributed evenly over the range; ReLU6 before clipping about 3 dB.
    assert all(10 < layer.output_sqnr_db < 60 for layer in layers), layers
    assert all(30 < layer.weight_sqnr_db < 60 for layer in with_weights if layer.weight_sqnr_db is not None), layers
    assert layers[0].output_sqnr_db > layers[-1].output_sqnr_db


def test_the_ratio_falls_at_the_layer_whose_weights_were_changed(prepared: nn.Module, calibration: Tensor) -> None:
    before = measured(prepared, copy.deepcopy(prepared), calibration[:4])
    changed_layer = [layer.name for layer in before if layer.weight_sqnr_db is not None][5]
    worse = copy.deepcopy(prepared)
    module = worse.get_submodule(changed_layer)
    convolution = module[0] if isinstance(module, nn.Sequential) else module
    assert isinstance(convolution, nn.Conv2d)
    convolution.weight.data += convolution.weight.std() * torch.randn(convolution.weight.shape) / 4
    after = measured(prepared, worse, calibration[:4])
    untouched = list(takewhile(lambda pair: pair[0].name != changed_layer, zip(before, after, strict=True)))
    assert len(untouched) > 5
    assert all(one == other for one, other in untouched)
    one, other = next(pair for pair in zip(before, after, strict=True) if pair[0].name == changed_layer)
    assert other.weight_sqnr_db == pytest.approx(12, abs=3)  # a quarter of the standard deviation: 20 log10(4)
    assert other.output_sqnr_db < one.output_sqnr_db - 3


def test_measuring_does_not_change_the_observers(prepared: nn.Module, calibration: Tensor) -> None:
    before = {key: value.clone() for key, value in prepared.state_dict().items()}
    measured(prepared, copy.deepcopy(prepared), 100 * calibration[:2])
    after = prepared.state_dict()
    assert [key for key, value in before.items() if not torch.equal(value, after[key])] == []
    wide = prepared(100 * calibration[:2])
    assert torch.isfinite(wide).all()
    assert [key for key, value in before.items() if not torch.equal(value, prepared.state_dict()[key])] != []


@pytest.mark.parametrize("name", ["resnet18", "yolov5n"])
def test_output_layers_are_measured_before_quantization(
    name: str, weights_of: Callable[[str], Mapping[str, Tensor]], calibration: Tensor
) -> None:
    scope = {"int8_scope": "whole"} if name == "yolov5n" else {}
    parser = load_parser(find_model(name)[1])
    prepared = parser(weights=weights_of(name), num_classes=10, quantize=True, target=TARGET, **scope)
    calibrate(prepared, calibration.split(8))
    before = measured(prepared, copy.deepcopy(prepared), calibration[:4])
    coarse = copy.deepcopy(prepared)
    outputs = [key for key, module in coarse.named_modules() if any(module is layer for layer in output_layers(coarse))]
    for key in outputs:
        coarse.get_submodule(key).activation_post_process.max_val *= 1000
    assert outputs
    assert measured(prepared, coarse, calibration[:4]) == before
    inner = [layer.name for layer in before if layer.weight_sqnr_db is not None and layer.name not in outputs][-1]
    coarse.get_submodule(inner).activation_post_process.max_val *= 1000
    changed = [one.name for one, other in zip(before, measured(prepared, coarse, calibration[:4]), strict=True) if one != other]
    assert changed[0] == inner
