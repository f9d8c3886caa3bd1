"""YOLOv3 (Redmon and Farhadi 2018): Darknet-53, and three detection heads on a feature pyramid."""

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

__all__ = ["QuantizableYoloV3", "YoloV3", "yolov3"]

ANCHORS = (
    ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)),
    ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)),
    ((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
)  # pixels, of COCO, for strides 8, 16 and 32
DEFAULT = DarknetArchitecture(anchors=ANCHORS, xy_scales=(1.0, 1.0, 1.0))  # yolov3.cfg

_leaky = partial(ConvNormAct, activation=partial(nn.LeakyReLU, 0.1))


class Darknet53(nn.Module):
    """The backbone: 52 convolutions with residuals, in five stages that halve the resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _leaky(3, 32, 3)
        widths, depths = (64, 128, 256, 512, 1024), (1, 2, 8, 8, 4)
        self.stages = nn.ModuleList(
            nn.Sequential(
                _leaky(width // 2, width, 3, stride=2),
                *(Residual(_leaky(width, width // 2, 1), _leaky(width // 2, width, 3)) for _ in range(depth)),
            )
            for width, depth in zip(widths, depths, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features[2:]


class Branch(nn.Module):
    """Five convolutions over the features of a scale; returns their output for the next finer scale, and the raw map."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(
            _leaky(inputs, width, 1),
            _leaky(width, 2 * width, 3),
            _leaky(2 * width, width, 1),
            _leaky(width, 2 * width, 3),
            _leaky(2 * width, width, 1),
        )
        self.widen = _leaky(width, 2 * width, 3)
        self.prediction = nn.Conv2d(2 * width, outputs, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mixed: Tensor = self.mix(x)
        return mixed, self.prediction(self.widen(mixed))


class Pyramid(nn.Module):
    """The neck and its heads, from the coarsest scale to the finest."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.coarse = Branch(1024, 512, outputs)
        self.up_middle = nn.Sequential(_leaky(512, 256, 1), nn.Upsample(scale_factor=2, mode="nearest"))
        self.join_middle = Concatenate()
        self.middle = Branch(256 + 512, 256, outputs)
        self.up_fine = nn.Sequential(_leaky(256, 128, 1), nn.Upsample(scale_factor=2, mode="nearest"))
        self.join_fine = Concatenate()
        self.fine = Branch(128 + 256, 128, outputs)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        fine, middle, coarse = features
        mixed, coarse_map = self.coarse(coarse)
        mixed, middle_map = self.middle(self.join_middle([self.up_middle(mixed), middle]))
        _, fine_map = self.fine(self.join_fine([self.up_fine(mixed), fine]))
        return [fine_map, middle_map, coarse_map]


class YoloV3(Detector):
    """The float network; 62,001,757 values with 80 classes, as Darknet stores them."""

    def __init__(self, num_classes: int = 80, architecture: DarknetArchitecture = DEFAULT) -> None:
        super().__init__(num_classes)
        self.backbone = Darknet53()
        self.pyramid = Pyramid(len(architecture.anchors[0]) * (BOX + num_classes))
        self.register_buffer("anchors", torch.tensor(architecture.anchors), persistent=False)
        self.xy_scales = architecture.xy_scales
        if architecture.activations is not None:
            self.use_activations(architecture.activations)

    def extract(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.backbone(x)
        return features

    def predict(self, features: list[Tensor]) -> list[Tensor]:
        maps: list[Tensor] = self.pyramid(features)
        return maps

    def predicting_modules(self) -> list[nn.Module]:
        return [self.pyramid]

    def prediction_layers(self) -> list[nn.Conv2d]:
        return [self.pyramid.fine.prediction, self.pyramid.middle.prediction, self.pyramid.coarse.prediction]

    def anchor_sizes(self) -> Tensor:
        anchors: Tensor = self.anchors  # type: ignore[assignment]
        return anchors

    def darknet_layers(self) -> list[DarknetLayer]:
        """Return the convolutions in the order of yolov3.cfg, which is their order of construction."""
        return darknet_layers(self)


class QuantizableYoloV3(QuantizableDetector, YoloV3):
    """YoloV3 with quantization stubs; a float model until it is converted."""


def _yolov3(
    weights: Weights,
    progress: bool,
    quantize: bool,
    is_qat: bool,
    target: QuantizationProfile | None,
    **kwargs: Any,
) -> QuantizableYoloV3:
    state_dict, options = resolve_weights(weights, kwargs, progress=progress)
    model = QuantizableYoloV3(**options)
    return load_fuse_prepare(model, state_dict, quantize=quantize, is_qat=is_qat, target=target)


def yolov3(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableYoloV3:
    return _yolov3(weights, progress, quantize, is_qat, target, **kwargs)
