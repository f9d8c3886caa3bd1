"""Concatenation of feature maps that is quantized on conversion."""

from __future__ import annotations

from torch import Tensor, nn

from bundler.quantization import FloatFunctional

__all__ = ["Concatenate"]


class Concatenate(nn.Module):
    """Feature maps [N, C_i, H, W] along their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.functional = FloatFunctional()  # torch.cat, until it is converted

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.functional.cat(features, 1)
