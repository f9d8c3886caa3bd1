"""BatchNorm and ReLU without a preceding convolution, converted to a depthwise convolution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bundler.quantization import DeQuantStub, QuantStub, calibrate, convert, fuse_modules, load_fuse_prepare, quantized_engine
from bundler.quantization.batch_norm import QuantizedBatchNormReLU
from bundler.targets import TargetProfile

CHANNELS = 24


class Normalising(nn.Module):
    """BatchNorm and ReLU with statistics as after training."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.norm.weight.data, self.norm.bias.data = weight, bias
        self.norm.running_mean = torch.empty(CHANNELS).uniform_(-1, 1)
        self.norm.running_var = torch.empty(CHANNELS).uniform_(0.2, 4)
        self.relu = nn.ReLU()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.dequant(self.relu(self.norm(self.quant(x))))
        return normalised

    def fuse_model(self, is_qat: bool | None = None) -> None:
        fuse_modules(self, ["norm", "relu"], is_qat)


def quantized(model: Normalising, values: Tensor, target: TargetProfile) -> Any:
    load_fuse_prepare(model, None, quantize=True, is_qat=False, target=target.quantization)
    calibrate(model, [values])
    return convert(model, target.quantization)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_int8_form_approximates_batch_norm_and_relu_of_the_dequantized_input(sign: float, target: TargetProfile) -> None:
    values = torch.randn(4, CHANNELS, 8, 8) * torch.linspace(0.1, 3, CHANNELS).reshape(1, -1, 1, 1)
    model = Normalising(torch.empty(CHANNELS).uniform_(0.1, 2) * sign, torch.randn(CHANNELS))
    converted = quantized(model, values, target)
    with quantized_engine(target.quantization.engine), torch.inference_mode():
        integers = converted.quant(values)
        answers = converted(values)
        wanted = model.norm(integers.dequantize())
    layer = converted.norm
    assert type(layer) is QuantizedBatchNormReLU
    top = 255 - layer.zero_point
    # Half a step of the output, and half a step of the bias, whose scale is 1/64 of that of the input.
    assert float((answers - wanted.clamp(max=top * layer.scale)).abs().max()) <= 0.55 * layer.scale
    assert answers.unique().numel() > 60


def test_no_pair_of_products_saturates_int16(target: TargetProfile) -> None:
    """CPUs with AVX2 or SSE, without VNNI, add two products of uint8 and int8 in int16."""
    weight = torch.logspace(-6, 6, CHANNELS)
    converted = quantized(Normalising(weight, torch.zeros(CHANNELS)), torch.randn(2, CHANNELS, 8, 8), target)
    integers = converted.norm.weight().int_repr()
    assert integers.abs().min() == integers.abs().max() == 64
    assert 2 * 255 * int(integers.abs().max()) < 2**15


@pytest.mark.parametrize("weight", [0.0, 1e-12])
def test_channels_with_a_weight_near_zero_keep_their_bias(weight: float, target: TargetProfile) -> None:
    bias = torch.linspace(-2, 5, CHANNELS)
    values = torch.randn(2, CHANNELS, 8, 8)
    converted = quantized(Normalising(torch.full((CHANNELS,), weight), bias), values, target)
    with quantized_engine(target.quantization.engine), torch.inference_mode():
        answers = converted(values)
    wanted = bias.relu().reshape(1, -1, 1, 1).expand_as(answers)
    assert float((answers - wanted).abs().max()) <= 0.51 * converted.norm.scale
