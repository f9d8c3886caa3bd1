"""Squeeze-and-excitation (Hu et al. 2018) in quantized arithmetic, as MobileNetV3 and EfficientNet have it."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from bundler.models import torchvision_operators  # noqa: F401  before torchvision
from bundler.quantization import FloatFunctional, fuse_modules

from torchvision.ops.misc import SqueezeExcitation

__all__ = ["QuantizableSqueezeExcitation"]


class QuantizableSqueezeExcitation(SqueezeExcitation):  # type: ignore[misc]
    """torchvision's block whose gate is multiplied in quantized arithmetic."""

    chain: ClassVar[tuple[str, ...]] = ("avgpool", "fc1", "activation", "fc2", "scale_activation")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.skip_mul = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        return self.skip_mul.mul(self._scale(x), x)

    def fuse_model(self, is_qat: bool | None = None) -> None:
        if type(self.activation) is nn.ReLU:
            fuse_modules(self, ["fc1", "activation"], is_qat)
