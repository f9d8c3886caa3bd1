"""The scope table of the specification as plain data; reading it needs no torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from bundler.errors import UnbuiltModelError, UnknownModelError

__all__ = ["SCOPE", "Interpolation", "Mode", "ModelSpec", "ScopeRow", "find_model", "load_parser", "models"]

Mode = Literal["fp32", "int8-ptq", "int8-qat"]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A variant: the name of its parser, and what its published weights ask of a picture (pixels)."""

    name: str
    resize: int
    crop: int
    interpolation: Interpolation = "bilinear"


@dataclass(frozen=True, kw_only=True)
class ScopeRow:
    """A row of the specification's table, and the module of `bundler.models` that builds it."""

    name: str
    variants: tuple[ModelSpec, ...]
    family: str | None
    quantization: str
    int8_scope: Literal["whole", "backbone"] = "whole"

    @property
    def built(self) -> bool:
        return self.family is not None

    @property
    def reason(self) -> str:
        """Why the row offers no mode; empty where it does."""
        return "" if self.built else "it is in the scope table and not built yet"

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that a bundle can carry; `int8-qat` comes with the training loop."""
        return ("fp32", "int8-ptq") if self.built else ()


def _row(
    name: str, *variants: ModelSpec, family: str | None = None, quantization: str = "PTQ, QAT", backbone: bool = False
) -> ScopeRow:
    scope: Literal["whole", "backbone"] = "backbone" if backbone else "whole"
    return ScopeRow(name=name, variants=variants, family=family, quantization=quantization, int8_scope=scope)


def _variant(name: str, resize: int, crop: int, interpolation: Interpolation = "bilinear") -> ModelSpec:
    return ModelSpec(name=name, resize=resize, crop=crop, interpolation=interpolation)


_YOLOV5 = tuple(_variant(f"yolov5{size}", 640, 640) for size in "nsmlx")

SCOPE: tuple[ScopeRow, ...] = (
    _row("ResNet18", _variant("resnet18", 256, 224), family="resnet"),
    _row("ResNet34", _variant("resnet34", 256, 224), family="resnet"),
    _row("ResNet50", _variant("resnet50", 232, 224), family="resnet"),
    _row("ResNet101", _variant("resnet101", 232, 224), family="resnet"),
    _row("ResNet152", _variant("resnet152", 232, 224), family="resnet"),
    _row("DenseNet121", _variant("densenet121", 256, 224)),
    _row("DenseNet161", _variant("densenet161", 256, 224)),
    _row("DenseNet169", _variant("densenet169", 256, 224)),
    _row("DenseNet201", _variant("densenet201", 256, 224)),
    _row("EfficientNetB0", _variant("efficientnet_b0", 256, 224, "bicubic")),
    _row("EfficientNetB1", _variant("efficientnet_b1", 255, 240)),
    _row("EfficientNetB2", _variant("efficientnet_b2", 288, 288, "bicubic")),
    _row("EfficientNetB3", _variant("efficientnet_b3", 320, 300, "bicubic")),
    _row("EfficientNetB4", _variant("efficientnet_b4", 384, 380, "bicubic")),
    _row("EfficientNetB5", _variant("efficientnet_b5", 456, 456, "bicubic")),
    _row("EfficientNetB6", _variant("efficientnet_b6", 528, 528, "bicubic")),
    _row("EfficientNetB7", _variant("efficientnet_b7", 600, 600, "bicubic")),
    _row("MobileNetV2", _variant("mobilenet_v2", 232, 224), family="mobilenet_v2"),
    _row(
        "MobileNetV3",
        _variant("mobilenet_v3_large", 232, 224),
        _variant("mobilenet_v3_small", 256, 224),
        family="mobilenet_v3",
    ),
    _row("WideResNet50", _variant("wide_resnet50_2", 232, 224), family="resnet"),
    _row("WideResNet101", _variant("wide_resnet101_2", 232, 224), family="resnet"),
    _row("ResNext50", _variant("resnext50_32x4d", 232, 224), family="resnet"),
    _row("ResNext101", _variant("resnext101_32x8d", 232, 224), _variant("resnext101_64x4d", 232, 224), family="resnet"),
    _row("YoloV3", _variant("yolov3", 416, 416), quantization="PTQ, QAT", backbone=True),
    _row("YoloV4", _variant("yolov4", 416, 416), quantization="PTQ, QAT", backbone=True),
    _row("YoloV5", *_YOLOV5, quantization="PTQ, QAT", backbone=True),
)


def models() -> dict[str, tuple[ScopeRow, ModelSpec]]:
    """Return every variant with its row, by the name of its parser."""
    return {variant.name: (row, variant) for row in SCOPE for variant in row.variants}


def find_model(name: str) -> tuple[ScopeRow, ModelSpec]:
    """Return the row and the variant of that name.

    Raises:
        UnknownModelError: none is called that; it carries the nearest names.
        UnbuiltModelError: the row is not built yet.
    """
    known = models()
    if name not in known:
        raise UnknownModelError(name, known)
    row, variant = known[name]
    if not row.built:
        raise UnbuiltModelError(name, row.name)
    return row, variant


def load_parser(row: ScopeRow, variant: ModelSpec) -> Callable[..., Any]:
    """Import the family's module and return the variant's parser (specification, "Model Parser Function")."""
    parser: Callable[..., Any] = getattr(importlib.import_module(f"bundler.models.{row.family}"), variant.name)
    return parser
