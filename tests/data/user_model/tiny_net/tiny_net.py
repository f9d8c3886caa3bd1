"""TinyNet, an example to copy: a residual network of four convolutions for pictures of 64 pixels."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bundler.models.published_weights import Weights, state_dict_of
from bundler.models.specs import ModelSpec
from bundler.quantization import (
    DeQuantStub,
    FloatFunctional,
    QuantizationProfile,
    QuantStub,
    fuse_modules,
    load_fuse_prepare,
)

__all__ = ["QuantizableBlock", "QuantizableTinyNet", "tiny_net"]


class QuantizableBlock(nn.Module):
    """Two 3x3 convolutions; what went in is added in quantized arithmetic."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.add_relu = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.add_relu.add_relu(out, x)

    def fuse_model(self, is_qat: bool | None = None) -> None:
        fuse_modules(self, [["conv1", "bn1", "relu"], ["conv2", "bn2"]], is_qat)


class QuantizableTinyNet(nn.Module):
    """The network between quantization stubs; a float model until it is converted."""

    def __init__(self, *, num_classes: int = 5) -> None:
        super().__init__()
        self.quant = QuantStub()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=4, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.block = QuantizableBlock(16)
        self.widen = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(32, num_classes)
        self.dequant = DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        x = self.widen(self.block(self.stem(self.quant(x))))
        logits: Tensor = self.dequant(self.classifier(self.pool(x).flatten(1)))
        return logits

    def fuse_model(self, is_qat: bool | None = None) -> None:
        fuse_modules(self.stem, ["0", "1", "2"], is_qat)
        self.block.fuse_model(is_qat)
        fuse_modules(self.widen, ["0", "1", "2"], is_qat)


def _tiny_net(
    weights: Weights,
    progress: bool,
    quantize: bool,
    is_qat: bool,
    target: QuantizationProfile | None,
    **kwargs: Any,
) -> QuantizableTinyNet:
    state_dict = state_dict_of(weights, kwargs, progress=progress)
    model = QuantizableTinyNet(**kwargs)
    return load_fuse_prepare(model, state_dict, quantize=quantize, is_qat=is_qat, target=target)


def tiny_net(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableTinyNet:
    return _tiny_net(weights, progress, quantize, is_qat, target, **kwargs)


# What its weights ask of a picture. Without it: 224 pixels cut from 256, 1000 classes.
tiny_net.model_spec = ModelSpec(  # type: ignore[attr-defined]  # of a function
    name="tiny_net", parser="tiny_net:tiny_net", resize=72, crop=64, num_classes=5
)
