"""Quantizable blocks that several model families share: concatenation, and squeeze-and-excitation (Hu et al. 2018)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from bundler.models import torchvision_operators  # noqa: F401  before torchvision
from bundler.quantization import FloatFunctional, fuse_modules

from torchvision.ops.misc import SqueezeExcitation

__all__ = ["Concatenate", "QuantizableSqueezeExcitation"]


class Concatenate(nn.Module):
    """Concatenate feature maps [N, C_i, H, W] along the channel dimension to [N, sum of C_i, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.functional = FloatFunctional()  # torch.cat until the model is converted

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.functional.cat(features, 1)


class QuantizableSqueezeExcitation(SqueezeExcitation):  # type: ignore[misc]
    """torchvision's SqueezeExcitation with a quantizable multiplication; used by MobileNetV3 and EfficientNet."""

    chain: ClassVar[tuple[str, ...]] = ("avgpool", "fc1", "activation", "fc2", "scale_activation")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.skip_mul = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        return self.skip_mul.mul(self._scale(x), x)

    def fuse_model(self, is_qat: bool | None = None) -> None:
        if type(self.activation) is nn.ReLU:
            fuse_modules(self, ["fc1", "activation"], is_qat)
