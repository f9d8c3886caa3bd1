"""A BatchNorm that no convolution can take in, as the pointwise depthwise convolution that it is.

DenseNet normalises before it convolves, so nothing stands in front to fold the BatchNorm into. Torch's own quantized BatchNorm
has no ONNX form; a depthwise convolution stays in INT8 everywhere.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.ao.nn.intrinsic import BNReLU2d
from torch.ao.nn.intrinsic.quantized import ConvReLU2d
from torch.ao.quantization import ObserverBase

__all__ = ["QuantizableBatchNormReLU", "QuantizedBatchNormReLU"]

# A channel has a single weight, which any integer times its own scale gives exactly. At 64, even a sum of two products with
# 8-bit activations (2 · 255 · 64) stays within int16, where processors without a dot product would saturate.
WEIGHT = 64
# A channel that is all bias: its scale, and with it the bias in int32, keeps within reach of the input's scale.
LEAST_SCALE = 2.0**-16


class QuantizableBatchNormReLU(BNReLU2d):
    """relu(BatchNorm(x)) of float32 [N, C, H, W], as fusing leaves it; torch's own type has another converted form."""


class QuantizedBatchNormReLU(ConvReLU2d):
    """relu(BatchNorm(x)) of quint8 [N, C, H, W], with weight / sqrt(variance + eps) as the weights of a convolution."""

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
    scales = torch.maximum(weight.abs() / WEIGHT, bias.abs() * LEAST_SCALE).clamp(min=torch.finfo(torch.float32).tiny)
    zero_points = torch.zeros(len(weight), dtype=torch.int64)
    shaped = weight.reshape(-1, 1, 1, 1)
    return torch.quantize_per_channel(shaped, scales.double(), zero_points, 0, torch.qint8)
