"""BatchNorm and ReLU without a preceding convolution, converted to an INT8 depthwise 1x1 convolution.

In a DenseNet, BatchNorm precedes the convolution and cannot be folded into it. Torch's quantized BatchNorm has no ONNX form; a
depthwise convolution is computed in INT8 by torch and by ONNX Runtime.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.ao.nn.intrinsic import BNReLU2d
from torch.ao.nn.intrinsic.quantized import ConvReLU2d
from torch.ao.quantization import ObserverBase

__all__ = ["QuantizableBatchNormReLU", "QuantizedBatchNormReLU"]

# Each channel has one weight, which a scale of its own represents exactly with any integer. With 64, the sum of two products
# with 8-bit activations (2 · 255 · 64) fits into int16, so that CPUs without VNNI do not saturate.
WEIGHT = 64
# Smallest scale of a weight relative to the bias, for channels whose weight is near zero: the int32 bias must not overflow.
MIN_SCALE = 2.0**-16


class QuantizableBatchNormReLU(BNReLU2d):
    """relu(BatchNorm(x)) of float32 [N, C, H, W], as made by `fuse_modules`; torch converts its base class differently."""


class QuantizedBatchNormReLU(ConvReLU2d):
    """relu(BatchNorm(x)) of quint8 [N, C, H, W], as a depthwise convolution with the weight `gamma / sqrt(variance + eps)`."""

    @classmethod
    def from_float(cls, observed: BNReLU2d) -> QuantizedBatchNormReLU:  # type: ignore[override]
        norm, observer = cast("nn.BatchNorm2d", observed[0]), cast("ObserverBase", observed.activation_post_process)
        channels = norm.num_features
        mean, variance = cast("Tensor", norm.running_mean), cast("Tensor", norm.running_var)
        weight = (norm.weight / torch.sqrt(variance + norm.eps)).detach()
        bias = (norm.bias - mean * weight).detach()
        scale, zero_point = observer.calculate_qparams()
        convolution = cls(channels, channels, 1, groups=channels)
        convolution.set_weight_bias(_quantized(weight, bias), bias)
        convolution.scale, convolution.zero_point = float(scale), int(zero_point)
        return convolution


def _quantized(weight: Tensor, bias: Tensor) -> Tensor:
    """Return the weights [C] as qint8 [C, 1, 1, 1]."""
    scales = torch.maximum(weight.abs() / WEIGHT, bias.abs() * MIN_SCALE).clamp(min=torch.finfo(torch.float32).tiny)
    zero_points = torch.zeros(len(weight), dtype=torch.int64)
    return torch.quantize_per_channel(weight.reshape(-1, 1, 1, 1), scales.double(), zero_points, 0, torch.qint8)
