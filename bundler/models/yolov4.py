"""YOLOv4 (Bochkovskiy et al. 2020): CSPDarknet-53 with Mish, spatial pyramid pooling, and a path aggregation network."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bundler.models.darknet_cfg import DarknetArchitecture
from bundler.models.darknet_weights import DarknetLayer
from bundler.models.detector import BOX, Concatenate, ConvNormAct, Detector, QuantizableDetector, Residual, darknet_layers
from bundler.models.published_weights import Weights, resolve_weights
from bundler.quantization import QuantizationProfile, load_fuse_prepare

__all__ = ["QuantizableYoloV4", "YoloV4", "yolov4"]

ANCHORS = (
    ((12.0, 16.0), (19.0, 36.0), (40.0, 28.0)),
    ((36.0, 75.0), (76.0, 55.0), (72.0, 146.0)),
    ((142.0, 110.0), (192.0, 243.0), (459.0, 401.0)),
)  # pixels, of COCO, for strides 8, 16 and 32
DEFAULT = DarknetArchitecture(anchors=ANCHORS, xy_scales=(1.2, 1.1, 1.05))  # yolov4.cfg

_leaky = partial(ConvNormAct, activation=partial(nn.LeakyReLU, 0.1))
_mish = partial(ConvNormAct, activation=nn.Mish)


class CrossStage(nn.Module):
    """Halve the resolution; then a cross-stage partial block: one half of the channels passes through residuals."""

    def __init__(self, inputs: int, outputs: int, depth: int, *, half: int, hidden: int) -> None:
        super().__init__()
        self.down = _mish(inputs, outputs, 3, stride=2)
        self.past = _mish(outputs, half, 1)
        self.enter = _mish(outputs, half, 1)
        self.residuals = nn.Sequential(
            *(Residual(_mish(half, hidden, 1), _mish(hidden, half, 3)) for _ in range(depth)),
        )
        self.leave = _mish(half, half, 1)
        self.join = Concatenate()
        self.merge = _mish(2 * half, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        through = self.leave(self.residuals(self.enter(x)))
        merged: Tensor = self.merge(self.join([through, self.past(x)]))
        return merged


class CspDarknet53(nn.Module):
    """The backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _mish(3, 32, 3)
        self.stages = nn.ModuleList(
            [
                CrossStage(32, 64, 1, half=64, hidden=32),  # the first stage does not halve its channels
                CrossStage(64, 128, 2, half=64, hidden=64),
                CrossStage(128, 256, 8, half=128, hidden=128),
                CrossStage(256, 512, 8, half=256, hidden=256),
                CrossStage(512, 1024, 4, half=512, hidden=512),
            ]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features[2:]


class PyramidPooling(nn.Module):
    """Concatenate the coarsest map with its maxima over 5, 9 and 13 cells."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(_leaky(1024, 512, 1), _leaky(512, 1024, 3), _leaky(1024, 512, 1))
        self.pools = nn.ModuleList(nn.MaxPool2d(size, stride=1, padding=size // 2) for size in (13, 9, 5))
        self.join = Concatenate()
        self.leave = nn.Sequential(_leaky(2048, 512, 1), _leaky(512, 1024, 3), _leaky(1024, 512, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        maps = [pool(x) for pool in self.pools]
        maps.append(x)
        pooled: Tensor = self.leave(self.join(maps))
        return pooled


def _mix(width: int) -> nn.Sequential:
    """Five convolutions over the concatenation of two paths."""
    return nn.Sequential(
        _leaky(2 * width, width, 1),
        _leaky(width, 2 * width, 3),
        _leaky(2 * width, width, 1),
        _leaky(width, 2 * width, 3),
        _leaky(2 * width, width, 1),
    )


class WayUp(nn.Module):
    """Upsample a coarser scale and merge it with the next finer one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow = _leaky(2 * width, width, 1)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.lateral = _leaky(2 * width, width, 1)
        self.join = Concatenate()
        self.mix = _mix(width)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        up = self.up(self.narrow(coarse))
        mixed: Tensor = self.mix(self.join([self.lateral(fine), up]))
        return mixed


class WayDown(nn.Module):
    """Downsample a finer scale and merge it with the next coarser one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = _leaky(width // 2, width, 3, stride=2)
        self.join = Concatenate()
        self.mix = _mix(width)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        mixed: Tensor = self.mix(self.join([self.down(fine), coarse]))
        return mixed


class Head(nn.Module):
    """A 3x3 convolution, and the 1x1 convolution that predicts the raw map."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.widen = _leaky(width, 2 * width, 3)
        self.prediction = nn.Conv2d(2 * width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        raw: Tensor = self.prediction(self.widen(x))
        return raw


class PathAggregation(nn.Module):
    """The neck and its heads: up to the finest scale, and down again."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.pooling = PyramidPooling()
        self.up_middle = WayUp(256)
        self.up_fine = WayUp(128)
        self.head_fine = Head(128, outputs)
        self.down_middle = WayDown(256)
        self.head_middle = Head(256, outputs)
        self.down_coarse = WayDown(512)
        self.head_coarse = Head(512, outputs)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        fine, middle, coarse = features
        coarse = self.pooling(coarse)
        middle = self.up_middle(coarse, middle)
        fine = self.up_fine(middle, fine)
        middle = self.down_middle(fine, middle)
        coarse = self.down_coarse(middle, coarse)
        return [self.head_fine(fine), self.head_middle(middle), self.head_coarse(coarse)]


class YoloV4(Detector):
    """The float network; 64,429,405 values with 80 classes, as Darknet stores them."""

    def __init__(self, num_classes: int = 80, architecture: DarknetArchitecture = DEFAULT) -> None:
        super().__init__(num_classes)
        self.backbone = CspDarknet53()
        self.aggregation = PathAggregation(len(architecture.anchors[0]) * (BOX + num_classes))
        self.register_buffer("anchors", torch.tensor(architecture.anchors), persistent=False)
        self.xy_scales = architecture.xy_scales
        if architecture.activations is not None:
            self.use_activations(architecture.activations)

    def extract(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.backbone(x)
        return features

    def predict(self, features: list[Tensor]) -> list[Tensor]:
        maps: list[Tensor] = self.aggregation(features)
        return maps

    def predicting_modules(self) -> list[nn.Module]:
        return [self.aggregation]

    def prediction_layers(self) -> list[nn.Conv2d]:
        heads = (self.aggregation.head_fine, self.aggregation.head_middle, self.aggregation.head_coarse)
        return [head.prediction for head in heads]

    def anchor_sizes(self) -> Tensor:
        anchors: Tensor = self.anchors  # type: ignore[assignment]
        return anchors

    def darknet_layers(self) -> list[DarknetLayer]:
        """Return the convolutions in the order of yolov4.cfg, which is their order of construction."""
        return darknet_layers(self)


class QuantizableYoloV4(QuantizableDetector, YoloV4):
    """YoloV4 with quantization stubs; a float model until it is converted."""


def _yolov4(
    weights: Weights,
    progress: bool,
    quantize: bool,
    is_qat: bool,
    target: QuantizationProfile | None,
    **kwargs: Any,
) -> QuantizableYoloV4:
    state_dict, options = resolve_weights(weights, kwargs, progress=progress)
    model = QuantizableYoloV4(**options)
    return load_fuse_prepare(model, state_dict, quantize=quantize, is_qat=is_qat, target=target)


def yolov4(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableYoloV4:
    return _yolov4(weights, progress, quantize, is_qat, target, **kwargs)
