"""ResNet, WideResNet and ResNeXt (He et al. 2015; Zagoruyko & Komodakis 2016; Xie et al. 2016)."""

from __future__ import annotations

from typing import Any

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

from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

__all__ = [
    "QuantizableBasicBlock",
    "QuantizableBottleneck",
    "QuantizableResNet",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]


class QuantizableBasicBlock(BasicBlock):  # type: ignore[misc]
    """Two 3x3 convolutions; quantized residual addition."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_relu = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.add_relu.add_relu(out, identity)

    def fuse_model(self, is_qat: bool | None = None) -> None:
        fuse_modules(self, [["conv1", "bn1", "relu"], ["conv2", "bn2"]], is_qat)
        if self.downsample is not None:
            fuse_modules(self.downsample, ["0", "1"], is_qat)


class QuantizableBottleneck(Bottleneck):  # type: ignore[misc]
    """1x1, 3x3, 1x1 convolutions; quantized residual addition."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Fusion needs one ReLU per convolution. ReLU has no state, so the keys are those of the parent class.
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()
        self.add_relu = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.add_relu.add_relu(out, identity)

    def fuse_model(self, is_qat: bool | None = None) -> None:
        fuse_modules(self, [["conv1", "bn1", "relu1"], ["conv2", "bn2", "relu2"], ["conv3", "bn3"]], is_qat)
        if self.downsample is not None:
            fuse_modules(self.downsample, ["0", "1"], is_qat)


class QuantizableResNet(ResNet):  # type: ignore[misc]
    """torchvision's ResNet with quantization stubs; a float model until it is converted."""

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
        fuse_modules(self, ["conv1", "bn1", "relu"], is_qat)
        for module in self.modules():
            if type(module) in (QuantizableBasicBlock, QuantizableBottleneck):
                module.fuse_model(is_qat)


def _resnet(
    block: type[QuantizableBasicBlock | QuantizableBottleneck],
    layers: list[int],
    weights: Weights,
    progress: bool,
    quantize: bool,
    is_qat: bool,
    target: QuantizationProfile | None,
    **kwargs: Any,
) -> QuantizableResNet:
    state_dict, options = resolve_weights(weights, kwargs, progress=progress)
    model = QuantizableResNet(block, layers, **options)
    return load_fuse_prepare(model, state_dict, quantize=quantize, is_qat=is_qat, target=target)


def resnet18(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableResNet:
    return _resnet(QuantizableBasicBlock, [2, 2, 2, 2], weights, progress, quantize, is_qat, target, **kwargs)


def resnet34(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableResNet:
    return _resnet(QuantizableBasicBlock, [3, 4, 6, 3], weights, progress, quantize, is_qat, target, **kwargs)


def resnet50(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableResNet:
    return _resnet(QuantizableBottleneck, [3, 4, 6, 3], weights, progress, quantize, is_qat, target, **kwargs)


def resnet101(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableResNet:
    return _resnet(QuantizableBottleneck, [3, 4, 23, 3], weights, progress, quantize, is_qat, target, **kwargs)


def resnet152(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableResNet:
    return _resnet(QuantizableBottleneck, [3, 8, 36, 3], weights, progress, quantize, is_qat, target, **kwargs)


def resnext50_32x4d(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableResNet:
    return _resnet(
        QuantizableBottleneck, [3, 4, 6, 3], weights, progress, quantize, is_qat, target, groups=32, width_per_group=4, **kwargs
    )


def resnext101_32x8d(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableResNet:
    return _resnet(
        QuantizableBottleneck,
        [3, 4, 23, 3],
        weights,
        progress,
        quantize,
        is_qat,
        target,
        groups=32,
        width_per_group=8,
        **kwargs,
    )


def resnext101_64x4d(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableResNet:
    return _resnet(
        QuantizableBottleneck,
        [3, 4, 23, 3],
        weights,
        progress,
        quantize,
        is_qat,
        target,
        groups=64,
        width_per_group=4,
        **kwargs,
    )


def wide_resnet50_2(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableResNet:
    return _resnet(
        QuantizableBottleneck, [3, 4, 6, 3], weights, progress, quantize, is_qat, target, width_per_group=128, **kwargs
    )


def wide_resnet101_2(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableResNet:
    return _resnet(
        QuantizableBottleneck, [3, 4, 23, 3], weights, progress, quantize, is_qat, target, width_per_group=128, **kwargs
    )
