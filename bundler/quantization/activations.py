"""SiLU, Hardswish and Mish that are a network's own in float, and whole numbers after conversion.

Torch quantizes Hardswish in one step, SiLU and Mish not at all. Here all follow one plan: the float model computes exactly what
the plain one does, an observer sees the result, and the converted model computes with what ONNX Runtime has in INT8.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bundler.quantization.observed import Observed, Rescaled

__all__ = ["QuantizableHardswish", "QuantizableMish", "QuantizableSiLU", "QuantizedHardswish", "QuantizedMish", "QuantizedSiLU"]

_operators = torch.library.Library("edge_bundler", "FRAGMENT")
_operators.define("mish(Tensor x, float scale, int zero_point) -> Tensor")


def _mish(x: Tensor, scale: float, zero_point: int) -> Tensor:
    return torch.quantize_per_tensor(nn.functional.mish(x.dequantize()), scale, zero_point, torch.quint8)


_operators.impl("mish", _mish, "QuantizedCPU")


class QuantizableSiLU(Observed):
    """x · sigmoid(x) (Elfwing et al. 2017)."""

    @staticmethod
    def compute(x: Tensor) -> Tensor:
        return nn.functional.silu(x)


class QuantizableHardswish(Observed):
    """x · hardsigmoid(x) (Howard et al. 2019)."""

    @staticmethod
    def compute(x: Tensor) -> Tensor:
        return nn.functional.hardswish(x)


class QuantizableMish(Observed):
    """x · tanh(softplus(x)) (Misra 2019)."""

    @staticmethod
    def compute(x: Tensor) -> Tensor:
        return nn.functional.mish(x)


class QuantizedSiLU(Rescaled):
    def forward(self, x: Tensor) -> Tensor:
        # [0, 1) in 256 steps and a zero point of 0, which torch's kernel of hardsigmoid has as well.
        gate = torch.ops.quantized.sigmoid(x, 1 / 256, 0)
        product: Tensor = torch.ops.quantized.mul(x, gate, self.scale, self.zero_point)
        return product


class QuantizedHardswish(Rescaled):
    def forward(self, x: Tensor) -> Tensor:
        gate = nn.functional.hardsigmoid(x)
        product: Tensor = torch.ops.quantized.mul(x, gate, self.scale, self.zero_point)
        return product


class QuantizedMish(Rescaled):
    """Torch has no quantized Mish; of 256 values it is a table, as which `bundler.quantization.symbolics` writes it."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.ops.edge_bundler.mish(x, self.scale, self.zero_point)
        return result
