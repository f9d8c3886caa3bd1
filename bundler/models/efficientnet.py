"""EfficientNet B0 to B7 (Tan and Le 2019): with quantized SiLU, squeeze-and-excitation and residual addition."""

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

from torchvision.models.efficientnet import EfficientNet, MBConv, MBConvConfig, _efficientnet_conf
from torchvision.ops.misc import Conv2dNormActivation

__all__ = [
    "QuantizableEfficientNet",
    "QuantizableMBConv",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_b7",
]


class QuantizableMBConv(MBConv):  # type: ignore[misc]
    """Expand, depthwise, squeeze-and-excitation, project; quantized residual addition, with stochastic depth in training."""

    __constants__: ClassVar[list[str]] = ["use_res_connect"]  # TorchScript drops the branch that is never taken

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, se_layer=QuantizableSqueezeExcitation, **kwargs)
        if self.use_res_connect:
            self.skip_add = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        if self.use_res_connect:
            return self.skip_add.add(self.stochastic_depth(out), x)
        return out


class QuantizableEfficientNet(EfficientNet):  # type: ignore[misc]
    """torchvision's EfficientNet with quantization stubs; a float model until it is converted."""

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
                fuse_modules(module, ["0", "1"], is_qat)
            elif type(module) is QuantizableSqueezeExcitation:
                module.fuse_model(is_qat)


def _efficientnet(
    inverted_residual_setting: list[MBConvConfig],
    usual_dropout: float,
    weights: Weights,
    progress: bool,
    quantize: bool,
    is_qat: bool,
    target: QuantizationProfile | None,
    **kwargs: Any,
) -> QuantizableEfficientNet:
    state_dict, options = resolve_weights(weights, kwargs, progress=progress)
    model = QuantizableEfficientNet(inverted_residual_setting, options.pop("dropout", usual_dropout), **options)
    return load_fuse_prepare(model, state_dict, quantize=quantize, is_qat=is_qat, target=target)


def _scaled(width_mult: float, depth_mult: float) -> list[MBConvConfig]:
    """Return B0's stages with the given width and depth factors (table 1 of the paper)."""
    setting, _ = _efficientnet_conf("efficientnet_b", width_mult=width_mult, depth_mult=depth_mult)
    for stage in setting:
        stage.block = QuantizableMBConv
    return list(setting)


# The published B5, B6 and B7 were trained with these values.
_LARGE: dict[str, Any] = {"norm_layer": partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)}


def efficientnet_b0(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableEfficientNet:
    return _efficientnet(_scaled(1.0, 1.0), 0.2, weights, progress, quantize, is_qat, target, **kwargs)


def efficientnet_b1(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableEfficientNet:
    return _efficientnet(_scaled(1.0, 1.1), 0.2, weights, progress, quantize, is_qat, target, **kwargs)


def efficientnet_b2(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableEfficientNet:
    return _efficientnet(_scaled(1.1, 1.2), 0.3, weights, progress, quantize, is_qat, target, **kwargs)


def efficientnet_b3(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableEfficientNet:
    return _efficientnet(_scaled(1.2, 1.4), 0.3, weights, progress, quantize, is_qat, target, **kwargs)


def efficientnet_b4(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableEfficientNet:
    return _efficientnet(_scaled(1.4, 1.8), 0.4, weights, progress, quantize, is_qat, target, **kwargs)


def efficientnet_b5(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableEfficientNet:
    return _efficientnet(_scaled(1.6, 2.2), 0.4, weights, progress, quantize, is_qat, target, **_LARGE | kwargs)


def efficientnet_b6(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableEfficientNet:
    return _efficientnet(_scaled(1.8, 2.6), 0.5, weights, progress, quantize, is_qat, target, **_LARGE | kwargs)


def efficientnet_b7(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableEfficientNet:
    return _efficientnet(_scaled(2.0, 3.1), 0.5, weights, progress, quantize, is_qat, target, **_LARGE | kwargs)
