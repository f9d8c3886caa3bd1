"""Biases that make up for what rounded weights shift on average."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from bundler.models.registry import find_model, load_parser
from bundler.quantization import calibrate, convert, correct_biases, quantized_engine
from bundler.targets import QuantizationProfile

# A scale for all channels, so that rounding shifts the small ones visibly.
COARSE = QuantizationProfile(engine="qnnpack", qconfig="qnnpack", refinements=(), recovery=())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "resnext50_32x4d"])
def test_each_layers_mean_comes_closer_to_the_float_one(
    name: str, weights_of: Callable[[str], Mapping[str, Tensor]], calibration: Tensor
) -> None:
    model = load_parser(find_model(name)[1])(weights=weights_of(name), num_classes=10, quantize=True, target=COARSE)
    calibrate(model, calibration.split(8))
    with quantized_engine(COARSE.engine):
        plain, corrected = convert(model, COARSE), convert(model, COARSE)
        layers = [part for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
        assert correct_biases(model, corrected, calibration.split(8)) == len(layers)
        before, after = (_first_shift(model, converted, calibration) for converted in (plain, corrected))
    assert before > 1e-3  # there is something to correct
    assert after < before / 2


def _first_shift(reference: nn.Module, converted: nn.Module, pictures: Tensor) -> float:
    """Return by how much the first convolution's mean is off, RMS over the channels, without what 8 bits of activation lose."""
    name = next(name for name, part in reference.named_modules() if isinstance(part, nn.Conv2d))
    layer, rounded = reference.get_submodule(name), converted
    for part in name.split("."):
        if hasattr(rounded, part):
            rounded = getattr(rounded, part)
        if callable(getattr(rounded, "set_weight_bias", None)):
            break
    assert isinstance(layer, nn.Conv2d)
    with torch.no_grad():
        exact = layer._conv_forward(pictures, layer.weight, layer.bias)
        coarse = layer._conv_forward(pictures, rounded.weight().dequantize(), rounded.bias())
    shift = (coarse - exact).mean((0, 2, 3))
    spread = exact.std((0, 2, 3))
    return float((shift / spread).square().mean().sqrt())
