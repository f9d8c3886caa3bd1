"""Compare a pickled YOLOv5 with the model that is built for it: classes and attributes on which its outputs depend."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from bundler.models.detector import BOX, Concatenate, ConvNormAct, Residual
from bundler.models.pickle_interpreter import Object
from bundler.models.pickled_modules import Payload, PickledModule, text_of
from bundler.models.yolov5 import CrossStage, Detect, OlderCrossStage, PyramidPooling, YoloV5
from bundler.models.yolov5_releases import DifferentModuleError

__all__ = ["refuse_other_modules"]

HEAD = "model.24"
_KINDS: Mapping[type[nn.Module], str] = {
    ConvNormAct: "Conv",
    CrossStage: "C3",
    OlderCrossStage: "BottleneckCSP",
    PyramidPooling: "SPPF",
    Residual: "Bottleneck",
    Concatenate: "Concat",
    Detect: "Detect",
}
_ATTRIBUTES: Mapping[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    nn.BatchNorm2d: ("num_features", "eps"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    nn.Upsample: ("size", "scale_factor", "mode"),
}
_SOURCES = {
    12: [-1, 6],
    16: [-1, 4],
    19: [-1, 14],
    22: [-1, 10],
    24: [17, 20, 23],
}  # indices of the modules that a module reads; others read the previous one
_WITHOUT_EFFECT = frozenset({"Identity", "Dropout", "Dropout2d"})


def refuse_other_modules(built: nn.Module, modules: Mapping[str, PickledModule], payload: Payload | None) -> None:
    """Compare each module with its counterpart; activations and the momentum of BatchNorms are not compared.

    Args:
        built: the float model.
        modules: of the pickle, as `without_older_modules` returns them.
        payload: reads the strides in the pickle; None to skip their comparison.

    Raises:
        DifferentModuleError: a module is missing, of another class, or differs in an attribute.
    """
    own = dict(built.named_modules())
    for path, module in modules.items():
        if path not in own and "act" not in path.split(".") and path and module.kind.name not in _WITHOUT_EFFECT:
            raise DifferentModuleError(f"{text_of(path)} is a {module}, which the model does not have")
    for path, module in own.items():
        if path in modules:
            if path not in {"", "model"} and "act" not in path.split("."):
                _refuse_other_module(path, module, modules[path])
        elif (type(module) in _ATTRIBUTES and not isinstance(module, nn.BatchNorm2d)) or re.fullmatch(r"model\.\d+", path):
            raise DifferentModuleError(f"{path} is missing")  # a BatchNorm may be fused into its convolution
    stride = modules[HEAD].attributes.get("stride") if HEAD in modules else None
    if payload is not None and isinstance(stride, Object):
        strides = tuple(payload.tensor(stride, f"{HEAD}.stride").flatten()[:4].tolist())
        if strides != tuple(map(float, YoloV5.strides)):
            raise DifferentModuleError(f"{HEAD} (Detect) has strides {strides}, not {YoloV5.strides}")


def _refuse_other_module(path: str, built: nn.Module, found: PickledModule) -> None:
    kind = _KINDS.get(type(built), type(built).__name__)
    if found.kind.name not in {kind, type(built).__name__}:
        raise DifferentModuleError(f"{path} is a {found}, not a {kind}")
    for attribute, expected in _expected(path, built).items():
        if attribute in found.attributes and not _same(found.attributes[attribute], expected):
            value = text_of(found.attributes[attribute])
            raise DifferentModuleError(f"{path} ({kind}) has {attribute} {value}, not {expected}")


def _expected(path: str, built: nn.Module) -> dict[str, object]:
    """Return the attributes on which the outputs of a module depend, with their values."""
    expected: dict[str, object] = {name: getattr(built, name) for name in _ATTRIBUTES.get(type(built), ())}
    match built:
        case Residual():
            expected["add"] = built.shortcut
        case Concatenate():
            expected["d"] = 1
        case Detect():
            outputs, anchors = cast("nn.Conv2d", built.m[0]).out_channels, len(cast("Tensor", built.anchors)[0])
            expected |= {"nl": len(built.m), "na": anchors, "no": outputs // anchors, "nc": outputs // anchors - BOX}
    if re.fullmatch(r"model\.\d+", path):
        number = int(path.removeprefix("model."))
        expected |= {"i": number, "f": _SOURCES.get(number, -1)}
    return expected


def _same(found: object, expected: object) -> bool:
    def pair(value: object) -> object:
        return [value, value] if isinstance(value, int | float) and not isinstance(value, bool) else list_of(value)

    def list_of(value: object) -> object:
        return list(value) if isinstance(value, tuple | list) else value

    if list_of(found) == list_of(expected):
        return True
    return isinstance(expected, tuple | int | float) and pair(found) == pair(expected)
