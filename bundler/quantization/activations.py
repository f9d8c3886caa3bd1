"""SiLU, Hardswish and Mish that are a network's own in float, and whole numbers after conversion.

Torch quantizes Hardswish in one step, SiLU and Mish not at all. Here all follow one plan: the float model computes exactly what
the plain one does, an observer sees the result, and the converted model computes with what ONNX Runtime has in INT8.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import ObserverBase

__all__ = ["QUANTIZED_ACTIVATIONS", "QuantizableHardswish", "QuantizableMish", "QuantizableSiLU", "make_quantizable"]

# Torch's own, fixed in its kernels of sigmoid and hardsigmoid: [0, 1) in 256 steps.
GATE_SCALE, GATE_ZERO_POINT = 1 / 256, 0

_operators = torch.library.Library("edge_bundler", "DEF")
_operators.define("mish(Tensor x, float scale, int zero_point) -> Tensor")


def _mish(x: Tensor, scale: float, zero_point: int) -> Tensor:
    return torch.quantize_per_tensor(nn.functional.mish(x.dequantize()), scale, zero_point, torch.quint8)


_operators.impl("mish", _mish, "QuantizedCPU")


class _QuantizableActivation(FloatFunctional):
    """An activation whose result is observed; a FloatFunctional, which is what torch's `prepare` observes."""

    @staticmethod
    def compute(x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        observed: Tensor = self.activation_post_process(self.compute(x))
        return observed


class QuantizableSiLU(_QuantizableActivation):
    """x · sigmoid(x) (Elfwing et al. 2017)."""

    @staticmethod
    def compute(x: Tensor) -> Tensor:
        return nn.functional.silu(x)


class QuantizableHardswish(_QuantizableActivation):
    """x · hardsigmoid(x) (Howard et al. 2019)."""

    @staticmethod
    def compute(x: Tensor) -> Tensor:
        return nn.functional.hardswish(x)


class QuantizableMish(_QuantizableActivation):
    """x · tanh(softplus(x)) (Misra 2019)."""

    @staticmethod
    def compute(x: Tensor) -> Tensor:
        return nn.functional.mish(x)


class _QuantizedActivation(nn.Module):
    """The converted form, with the scale and zero point that the observer found."""

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.scale = scale
        self.zero_point = zero_point

    @classmethod
    def from_float(cls, observed: _QuantizableActivation) -> _QuantizedActivation:
        scale, zero_point = cast("ObserverBase", observed.activation_post_process).calculate_qparams()
        return cls(float(scale), int(zero_point))


class QuantizedSiLU(_QuantizedActivation):
    def forward(self, x: Tensor) -> Tensor:
        gate = torch.ops.quantized.sigmoid(x, GATE_SCALE, GATE_ZERO_POINT)
        product: Tensor = torch.ops.quantized.mul(x, gate, self.scale, self.zero_point)
        return product


class QuantizedHardswish(_QuantizedActivation):
    def forward(self, x: Tensor) -> Tensor:
        gate = nn.functional.hardsigmoid(x)
        product: Tensor = torch.ops.quantized.mul(x, gate, self.scale, self.zero_point)
        return product


class QuantizedMish(_QuantizedActivation):
    """Torch has no quantized Mish; of 256 values it is a table, as which `bundler.export.symbolics` writes it."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.ops.edge_bundler.mish(x, self.scale, self.zero_point)
        return result


QUANTIZED_ACTIVATIONS: dict[type[nn.Module], type[nn.Module]] = {
    QuantizableSiLU: QuantizedSiLU,
    QuantizableHardswish: QuantizedHardswish,
    QuantizableMish: QuantizedMish,
}
_REPLACED: dict[type[nn.Module], type[nn.Module]] = {
    nn.SiLU: QuantizableSiLU,
    nn.Hardswish: QuantizableHardswish,
    nn.Mish: QuantizableMish,
}


def make_quantizable(model: nn.Module) -> None:
    """Replace each SiLU, Hardswish and Mish of a float model by its quantizable form, in place; none has parameters."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) in _REPLACED:
                setattr(parent, name, _REPLACED[type(child)]())
