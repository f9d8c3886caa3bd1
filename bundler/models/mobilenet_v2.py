"""MobileNetV2 (Sandler et al. 2018), with ReLU6 as in training."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from bundler.models.published_weights import Weights, resolve_weights
from bundler.quantization import (
    DeQuantStub,
    FloatFunctional,
    QuantizationProfile,
    QuantStub,
    fuse_modules,
    load_fuse_prepare,
    make_quantizable,
)

from torchvision.models.mobilenetv2 import InvertedResidual, MobileNetV2
from torchvision.ops.misc import Conv2dNormActivation

__all__ = ["QuantizableInvertedResidual", "QuantizableMobileNetV2", "mobilenet_v2"]


class QuantizableInvertedResidual(InvertedResidual):  # type: ignore[misc]
    """Expand, depthwise, project; quantized residual addition."""

    __constants__: ClassVar[list[str]] = ["use_res_connect"]  # TorchScript drops the branch that is never taken

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.use_res_connect:
            self.skip_add = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        if self.use_res_connect:
            return self.skip_add.add(x, self.conv(x))
        out: Tensor = self.conv(x)
        return out

    def fuse_model(self, is_qat: bool | None = None) -> None:
        for index, layer in enumerate(self.conv):
            if type(layer) is nn.Conv2d:
                fuse_modules(self.conv, [str(index), str(index + 1)], is_qat)


class QuantizableMobileNetV2(MobileNetV2):  # type: ignore[misc]
    """torchvision's MobileNetV2 with quantization stubs; a float model until it is converted.

    torchvision's own quantizable class replaces ReLU6 by ReLU, which changes the outputs. Here ReLU6 is kept: Conv + BatchNorm
    are fused, and the range of the observer before each ReLU6 is clamped (`bundler.quantization.clipping`).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.quant = QuantStub()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dequant = DeQuantStub()
        make_quantizable(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(self.quant(x))
        x = self.avgpool(x).flatten(1)
        logits: Tensor = self.dequant(self.classifier(x))
        return logits

    def fuse_model(self, is_qat: bool | None = None) -> None:
        for module in self.modules():
            if type(module) is Conv2dNormActivation:
                fuse_modules(module, ["0", "1"], is_qat)
            elif type(module) is QuantizableInvertedResidual:
                module.fuse_model(is_qat)


def _mobilenet_v2(
    weights: Weights,
    progress: bool,
    quantize: bool,
    is_qat: bool,
    target: QuantizationProfile | None,
    **kwargs: Any,
) -> QuantizableMobileNetV2:
    state_dict, options = resolve_weights(weights, kwargs, progress=progress)
    model = QuantizableMobileNetV2(block=QuantizableInvertedResidual, **options)
    return load_fuse_prepare(model, state_dict, quantize=quantize, is_qat=is_qat, target=target)


def mobilenet_v2(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableMobileNetV2:
    return _mobilenet_v2(weights, progress, quantize, is_qat, target, **kwargs)
