"""What torch's `prepare` observes and its `convert` replaces, for operators of which torch has no INT8 module of its own."""

from __future__ import annotations

from typing import Self, cast

from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import ObserverBase

__all__ = ["Observed", "Rescaled"]


class Observed(FloatFunctional):
    """An operator whose result is observed; a FloatFunctional, which is what torch's `prepare` observes."""

    @staticmethod
    def compute(x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        observed: Tensor = self.activation_post_process(self.compute(x))
        return observed


class Rescaled(nn.Module):
    """The converted form, with the scale and zero point that the observer found."""

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.scale = scale
        self.zero_point = zero_point

    @classmethod
    def from_float(cls, observed: Observed) -> Self:
        scale, zero_point = cast("ObserverBase", observed.activation_post_process).calculate_qparams()
        return cls(float(scale), int(zero_point))
