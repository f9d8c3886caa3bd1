"""What torch's `prepare` observes and its `convert` replaces, for operators of which torch has no INT8 module of its own."""

from __future__ import annotations

from typing import Any, Self, cast

import torch
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
    """The converted form, with the scale and zero point that the observer found.

    Both are numbers, which a traced or scripted graph holds as constants, and stand in the state dict as `scale` (float32) and
    `zero_point` (int64), as those of torch's own INT8 modules do.
    """

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.scale = scale
        self.zero_point = zero_point

    @classmethod
    def from_float(cls, observed: Observed) -> Self:
        scale, zero_point = cast("ObserverBase", observed.activation_post_process).calculate_qparams()
        return cls(float(scale), int(zero_point))

    def extra_repr(self) -> str:
        return f"scale={self.scale}, zero_point={self.zero_point}"

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}scale"] = torch.tensor(self.scale)
        destination[f"{prefix}zero_point"] = torch.tensor(self.zero_point)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, metadata: Any, strict: bool, missing: list[str], *others: Any
    ) -> None:
        scale, zero_point = (state_dict.pop(f"{prefix}{name}", None) for name in ("scale", "zero_point"))
        if scale is None:
            missing.append(f"{prefix}scale")
        else:
            self.scale = float(scale)
        if zero_point is None:
            missing.append(f"{prefix}zero_point")
        else:
            self.zero_point = int(zero_point)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *others)
