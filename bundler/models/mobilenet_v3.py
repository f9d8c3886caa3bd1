"""MobileNetV3 large and small (Howard et al. 2019), with quantized squeeze-and-excitation."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from bundler.models.published_weights import Weights, resolve_weights
from bundler.models.quantizable_blocks import QuantizableSqueezeExcitation
from bundler.quantization import (
    DeQuantStub,
    FloatFunctional,
    QuantizationProfile,
    QuantStub,
    fuse_modules,
    load_fuse_prepare,
    make_quantizable,
)

from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig, MobileNetV3, _mobilenet_v3_conf
from torchvision.ops.misc import Conv2dNormActivation

__all__ = [
    "QuantizableInvertedResidual",
    "QuantizableMobileNetV3",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
]


class QuantizableInvertedResidual(InvertedResidual):  # type: ignore[misc]
    """Expand, depthwise, squeeze-and-excitation, project; quantized residual addition."""

    __constants__: ClassVar[list[str]] = ["use_res_connect"]  # TorchScript drops the branch that is never taken

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        gate = partial(QuantizableSqueezeExcitation, scale_activation=nn.Hardsigmoid)
        super().__init__(*args, se_layer=gate, **kwargs)
        if self.use_res_connect:
            self.skip_add = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        if self.use_res_connect:
            return self.skip_add.add(self.block(x), x)
        out: Tensor = self.block(x)
        return out


class QuantizableMobileNetV3(MobileNetV3):  # type: ignore[misc]
    """torchvision's MobileNetV3 with quantization stubs; a float model until it is converted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.quant = QuantStub()
        self.dequant = DeQuantStub()
        make_quantizable(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.quant(x)
        x = self._forward_impl(x)
        logits: Tensor = self.dequant(x)
        return logits

    def fuse_model(self, is_qat: bool | None = None) -> None:
        for module in self.modules():
            if type(module) is Conv2dNormActivation:
                with_relu = len(module) == 3 and type(module[2]) is nn.ReLU
                fuse_modules(module, ["0", "1", "2"] if with_relu else ["0", "1"], is_qat)
            elif type(module) is QuantizableSqueezeExcitation:
                module.fuse_model(is_qat)


def _mobilenet_v3(
    inverted_residual_setting: list[InvertedResidualConfig],
    last_channel: int,
    weights: Weights,
    progress: bool,
    quantize: bool,
    is_qat: bool,
    target: QuantizationProfile | None,
    **kwargs: Any,
) -> QuantizableMobileNetV3:
    state_dict, options = resolve_weights(weights, kwargs, progress=progress)
    model = QuantizableMobileNetV3(inverted_residual_setting, last_channel, block=QuantizableInvertedResidual, **options)
    return load_fuse_prepare(model, state_dict, quantize=quantize, is_qat=is_qat, target=target)


def mobilenet_v3_large(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableMobileNetV3:
    setting, last_channel = _mobilenet_v3_conf("mobilenet_v3_large")
    return _mobilenet_v3(setting, last_channel, weights, progress, quantize, is_qat, target, **kwargs)


def mobilenet_v3_small(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableMobileNetV3:
    setting, last_channel = _mobilenet_v3_conf("mobilenet_v3_small")
    return _mobilenet_v3(setting, last_channel, weights, progress, quantize, is_qat, target, **kwargs)
