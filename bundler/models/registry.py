"""The scope table of the specification (docs/specification.md) as plain data, and look-up by name; it does not import torch."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bundler.errors import BrokenModelError, UnknownModelError
from bundler.models.specs import ModelSpec
from bundler.models.user_models import BrokenModel, UserModel, user_models

__all__ = ["SCOPE", "ScopeRow", "find_model", "load_parser", "models"]


@dataclass(frozen=True, kw_only=True)
class ScopeRow:
    """A row of the scope table: its name in the specification, and its variants."""

    name: str
    variants: tuple[ModelSpec, ...]


def _row(name: str, *variants: ModelSpec) -> ScopeRow:
    return ScopeRow(name=name, variants=variants)


def _classifier(family: str, name: str, resize: int, crop: int, **preprocessing: Any) -> ModelSpec:
    return ModelSpec(name=name, parser=f"bundler.models.{family}:{name}", resize=resize, crop=crop, **preprocessing)


def _detector(family: str, name: str, size: int) -> ModelSpec:
    return ModelSpec(
        name=name,
        parser=f"bundler.models.{family}:{name}",
        resize=size,
        crop=size,
        fit="letterbox",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        task="detection",
        num_classes=80,
    )


SCOPE: tuple[ScopeRow, ...] = (
    _row("ResNet18", _classifier("resnet", "resnet18", 256, 224)),
    _row("ResNet34", _classifier("resnet", "resnet34", 256, 224)),
    _row("ResNet50", _classifier("resnet", "resnet50", 232, 224)),
    _row("ResNet101", _classifier("resnet", "resnet101", 232, 224)),
    _row("ResNet152", _classifier("resnet", "resnet152", 232, 224)),
    _row("DenseNet121", _classifier("densenet", "densenet121", 256, 224)),
    _row("DenseNet161", _classifier("densenet", "densenet161", 256, 224)),
    _row("DenseNet169", _classifier("densenet", "densenet169", 256, 224)),
    _row("DenseNet201", _classifier("densenet", "densenet201", 256, 224)),
    _row("EfficientNetB0", _classifier("efficientnet", "efficientnet_b0", 256, 224, interpolation="bicubic")),
    _row("EfficientNetB1", _classifier("efficientnet", "efficientnet_b1", 255, 240)),
    _row("EfficientNetB2", _classifier("efficientnet", "efficientnet_b2", 288, 288, interpolation="bicubic")),
    _row("EfficientNetB3", _classifier("efficientnet", "efficientnet_b3", 320, 300, interpolation="bicubic")),
    _row("EfficientNetB4", _classifier("efficientnet", "efficientnet_b4", 384, 380, interpolation="bicubic")),
    _row("EfficientNetB5", _classifier("efficientnet", "efficientnet_b5", 456, 456, interpolation="bicubic")),
    _row("EfficientNetB6", _classifier("efficientnet", "efficientnet_b6", 528, 528, interpolation="bicubic")),
    _row("EfficientNetB7", _classifier("efficientnet", "efficientnet_b7", 600, 600, interpolation="bicubic")),
    _row("MobileNetV2", _classifier("mobilenet_v2", "mobilenet_v2", 232, 224)),
    _row(
        "MobileNetV3",
        _classifier("mobilenet_v3", "mobilenet_v3_large", 232, 224),
        _classifier("mobilenet_v3", "mobilenet_v3_small", 256, 224),
    ),
    _row("WideResNet50", _classifier("resnet", "wide_resnet50_2", 232, 224)),
    _row("WideResNet101", _classifier("resnet", "wide_resnet101_2", 232, 224)),
    _row("ResNext50", _classifier("resnet", "resnext50_32x4d", 232, 224)),
    _row(
        "ResNext101", _classifier("resnet", "resnext101_32x8d", 232, 224), _classifier("resnet", "resnext101_64x4d", 232, 224)
    ),
    _row("YoloV3", _detector("yolov3", "yolov3", 416)),
    _row("YoloV4", _detector("yolov4", "yolov4", 416)),
    _row("YoloV5", *(_detector("yolov5", f"yolov5{size}", 640) for size in "nsmlx")),
)


def models() -> dict[str, tuple[ScopeRow, ModelSpec]]:
    """Return each variant of the table with its row, by name."""
    return {variant.name: (row, variant) for row in SCOPE for variant in row.variants}


def find_model(name: str) -> tuple[ScopeRow, ModelSpec]:
    """Return the row and the variant with that name; a plug-in model has a row of its own.

    Raises:
        UnknownModelError: there is none; the message suggests similar names.
        BrokenModelError: the package that provides it cannot be used.
    """
    known = models()
    if name in known:
        return known[name]
    offered = sorted(user_models(taken=known), key=lambda model: isinstance(model, UserModel))
    own = {model.name: model for model in offered}  # of two with the same name, the usable one
    found = own.get(name)
    if found is None:
        raise UnknownModelError(name, [*known, *own])
    if isinstance(found, BrokenModel):
        raise BrokenModelError(name, found.package, found.reason)
    return _row(found.package, found.spec), found.spec


def load_parser(variant: ModelSpec) -> Callable[..., Any]:
    """Import the variant's module and return its model parser (docs/specification.md, "Model Parser Function")."""
    parser: Callable[..., Any] = pkgutil.resolve_name(variant.parser)
    return parser
