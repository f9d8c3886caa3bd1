"""YOLOv5 n, s, m, l and x (Jocher et al. 2020): CSP blocks, spatial pyramid pooling, and a path aggregation network.

Modules are numbered as in the published models, so that checkpoints of releases 6 and 7 have the same keys. Those of releases
2 to 5 have another backbone (`YoloV5Architecture.release`); `bundler.models.yolov5_releases` renames their keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bundler.models.detector import BOX, Concatenate, ConvNormAct, Detector, QuantizableDetector, Residual
from bundler.models.published_weights import Weights, resolve_weights
from bundler.quantization import QuantizationProfile, load_fuse_prepare

__all__ = [
    "QuantizableYoloV5",
    "Release",
    "YoloV5",
    "YoloV5Architecture",
    "yolov5l",
    "yolov5m",
    "yolov5n",
    "yolov5s",
    "yolov5x",
]

ANCHORS = (
    ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)),
    ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)),
    ((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
)  # pixels, of COCO, for strides 8, 16 and 32

BACKBONE = 10  # modules 0 to 9

Release = Literal[3, 5, 6]  # the last release of each network: 2 to 3.1, 4 and 5, 6 and 7
NORM_EPS = 1e-3


@dataclass(frozen=True, kw_only=True)
class YoloV5Architecture:
    """Settings in which networks of one size differ.

    Args:
        release: 6 means releases 6 and 7; 5 (releases 4 and 5) has its pooling before the last CSP block of the
            backbone, and more residuals at stride 8; 3 (releases 2 to 3.1) also has one more convolution in each CSP block.
        activations: of each block in the order of `YoloV5.blocks`; None for SiLU everywhere.
        norm_eps: of the BatchNorms.
        anchors: per cell of a scale.
    """

    release: Release = 6
    activations: tuple[str, ...] | None = None
    norm_eps: float = NORM_EPS
    anchors: int = len(ANCHORS[0])


PUBLISHED = YoloV5Architecture()

_conv = partial(ConvNormAct, activation=nn.SiLU, norm_eps=NORM_EPS, norm_momentum=0.03)


class CrossStage(nn.Module):
    """A cross-stage partial block: half of the channels pass through residuals; "C3" in the published models."""

    def __init__(self, inputs: int, outputs: int, depth: int, *, shortcut: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.cv1 = _conv(inputs, half, 1)
        self.cv2 = _conv(inputs, half, 1)
        self.cv3 = _conv(2 * half, outputs, 1)
        self.m = nn.Sequential(*(Residual(_conv(half, half, 1), _conv(half, half, 3), shortcut=shortcut) for _ in range(depth)))
        self.join = Concatenate()

    def forward(self, x: Tensor) -> Tensor:
        merged: Tensor = self.cv3(self.join([self.m(self.cv1(x)), self.cv2(x)]))
        return merged


class OlderCrossStage(nn.Module):
    """A CSP block with a convolution after its residuals; "BottleneckCSP" in releases 2 to 3.1.

    There the concatenated halves are normalised and activated together; here each half separately, which is equivalent.
    """

    def __init__(self, inputs: int, outputs: int, depth: int, *, shortcut: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.cv1 = _conv(inputs, half, 1)
        self.cv2 = _conv(inputs, half, 1)
        self.cv3 = _conv(half, half, 1)
        self.cv4 = _conv(2 * half, outputs, 1)
        self.m = nn.Sequential(*(Residual(_conv(half, half, 1), _conv(half, half, 3), shortcut=shortcut) for _ in range(depth)))
        self.join = Concatenate()

    def forward(self, x: Tensor) -> Tensor:
        merged: Tensor = self.cv4(self.join([self.cv3(self.m(self.cv1(x))), self.cv2(x)]))
        return merged


class PyramidPooling(nn.Module):
    """Concatenate a map with its maxima over 5, 9 and 13 cells, by repeated pooling; "SPPF" in the published models.

    "SPP" of releases before 6 computes the maxima over 9 and 13 cells directly, with the same result.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.cv1 = _conv(inputs, inputs // 2, 1)
        self.cv2 = _conv(inputs * 2, outputs, 1)
        self.m = nn.MaxPool2d(5, stride=1, padding=2)
        self.join = Concatenate()

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        once = self.m(x)
        twice = self.m(once)
        pooled: Tensor = self.cv2(self.join([x, once, twice, self.m(twice)]))
        return pooled


class Detect(nn.Module):
    """The detection heads; `anchors` are in cells of their stride, as in the published checkpoints."""

    def __init__(self, widths: tuple[int, int, int], anchors: int, outputs: int) -> None:
        super().__init__()
        self.m = nn.ModuleList(nn.Conv2d(width, anchors * outputs, 1) for width in widths)
        strides = torch.tensor(Detector.strides).reshape(-1, 1, 1)
        usual = torch.tensor(ANCHORS) / strides
        self.register_buffer("anchors", usual.repeat(1, anchors, 1)[:, :anchors])

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        maps = []
        for index, layer in enumerate(self.m):
            maps.append(layer(features[index]))
        return maps


class YoloV5(Detector):
    """The float network.

    Args:
        depth: factor for the number of residuals of each stage.
        width: factor for the number of channels, which is rounded up to a multiple of 8.
        num_classes: of the heads.
        architecture: other differences between networks of a size.
    """

    xy_scales = (2.0, 2.0, 2.0)

    def __init__(self, depth: float, width: float, num_classes: int = 80, architecture: YoloV5Architecture = PUBLISHED) -> None:
        super().__init__(num_classes)
        stage: Callable[..., nn.Module] = OlderCrossStage if architecture.release == 3 else CrossStage
        older = architecture.release < 6

        def repeated(times: int) -> int:
            return max(round(times * depth), 1)

        c64, c128, c256, c512, c1024 = (math.ceil(channels * width / 8) * 8 for channels in (64, 128, 256, 512, 1024))
        up = partial(nn.Upsample, scale_factor=2, mode="nearest")

        def coarsest() -> list[nn.Module]:  # the order of construction determines seeded weights
            if older:
                return [PyramidPooling(c1024, c1024), stage(c1024, c1024, repeated(3), shortcut=False)]
            return [stage(c1024, c1024, repeated(3)), PyramidPooling(c1024, c1024)]

        self.model = nn.ModuleList(
            [
                _conv(3, c64, 6, stride=2, padding=2),
                _conv(c64, c128, 3, stride=2),
                stage(c128, c128, repeated(3)),
                _conv(c128, c256, 3, stride=2),
                stage(c256, c256, repeated(9 if older else 6)),  # 4: stride 8
                _conv(c256, c512, 3, stride=2),
                stage(c512, c512, repeated(9)),  # 6: stride 16
                _conv(c512, c1024, 3, stride=2),
                *coarsest(),  # 9: stride 32
                _conv(c1024, c512, 1),
                up(),
                Concatenate(),
                stage(2 * c512, c512, repeated(3), shortcut=False),
                _conv(c512, c256, 1),
                up(),
                Concatenate(),
                stage(2 * c256, c256, repeated(3), shortcut=False),
                _conv(c256, c256, 3, stride=2),
                Concatenate(),
                stage(2 * c256, c512, repeated(3), shortcut=False),
                _conv(c512, c512, 3, stride=2),
                Concatenate(),
                stage(2 * c512, c1024, repeated(3), shortcut=False),
                Detect((c256, c512, c1024), architecture.anchors, BOX + num_classes),
            ]
        )
        for block in self.blocks().values():
            block.bn.eps = architecture.norm_eps
        if architecture.activations is not None:
            self.use_activations(architecture.activations)

    def extract(self, x: Tensor) -> list[Tensor]:
        model = self.model  # TorchScript needs literal indices to resolve the types of the modules
        fine = model[4](model[3](model[2](model[1](model[0](x)))))
        middle = model[6](model[5](fine))
        coarse = model[9](model[8](model[7](middle)))
        return [fine, middle, coarse]

    def predict(self, features: list[Tensor]) -> list[Tensor]:
        model = self.model
        fine, middle, coarse = features
        coarse = model[10](coarse)
        middle = model[14](model[13](model[12]([model[11](coarse), middle])))
        fine = model[17](model[16]([model[15](middle), fine]))
        middle = model[20](model[19]([model[18](fine), middle]))
        coarse = model[23](model[22]([model[21](middle), coarse]))
        maps: list[Tensor] = model[24]([fine, middle, coarse])
        return maps

    def predicting_modules(self) -> list[nn.Module]:
        return list(self.model[BACKBONE:])

    def prediction_layers(self) -> list[nn.Conv2d]:
        return list(self.model[24].m)  # type: ignore[arg-type]

    def anchor_sizes(self) -> Tensor:
        cells: Tensor = self.model[24].anchors  # type: ignore[assignment]
        return cells * torch.tensor(self.strides).reshape(-1, 1, 1)

    def box_sizes(self, raw: Tensor, anchors: Tensor) -> Tensor:
        """Return widths and heights in pixels: 0 to 4 times the anchor."""
        return (raw.sigmoid() * 2).square() * anchors


class QuantizableYoloV5(QuantizableDetector, YoloV5):
    """YoloV5 with quantization stubs; a float model until it is converted."""


def _yolov5(
    depth: float,
    width: float,
    weights: Weights,
    progress: bool,
    quantize: bool,
    is_qat: bool,
    target: QuantizationProfile | None,
    **kwargs: Any,
) -> QuantizableYoloV5:
    state_dict, options = resolve_weights(weights, kwargs, progress=progress)
    model = QuantizableYoloV5(depth, width, **options)
    return load_fuse_prepare(model, state_dict, quantize=quantize, is_qat=is_qat, target=target)


def yolov5n(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableYoloV5:
    return _yolov5(1 / 3, 0.25, weights, progress, quantize, is_qat, target, **kwargs)


def yolov5s(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableYoloV5:
    return _yolov5(1 / 3, 0.5, weights, progress, quantize, is_qat, target, **kwargs)


def yolov5m(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableYoloV5:
    return _yolov5(2 / 3, 0.75, weights, progress, quantize, is_qat, target, **kwargs)


def yolov5l(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableYoloV5:
    return _yolov5(1.0, 1.0, weights, progress, quantize, is_qat, target, **kwargs)


def yolov5x(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableYoloV5:
    return _yolov5(4 / 3, 1.25, weights, progress, quantize, is_qat, target, **kwargs)
