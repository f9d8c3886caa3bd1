"""Checkpoints of YOLOv5: recognize the network, and read the settings that keys and shapes do not show."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bundler.errors import CheckpointError
from bundler.models.activation_modules import ACTIVATIONS, describe_activations, leaky_relu
from bundler.models.detector_file import MOST_ANCHORS, DetectorFile, agreed_classes
from bundler.models.pickle_interpreter import Object, UnreadableError
from bundler.models.pickled_modules import Payload, PickledModule, is_module, items_of, pickled_modules, text_of
from bundler.models.yolov5 import NORM_EPS, Release, YoloV5, YoloV5Architecture
from bundler.models.yolov5_modules import refuse_other_modules
from bundler.models.yolov5_releases import (
    DifferentModuleError,
    release_in,
    without_older_modules,
    without_older_names,
)

__all__ = ["read_yolov5"]

ANCHORS = "model.24.anchors"
STEM = "model.0.conv.weight"
_SIZES = {16: "yolov5n", 32: "yolov5s", 48: "yolov5m", 64: "yolov5l", 80: "yolov5x"}  # by the channels of the first convolution
_RELEASES: dict[Release, str] = {3: "releases 2 to 3.1", 5: "releases 4 and 5", 6: "releases 6 and 7"}

# Wrappers around a network, with the attribute that holds it: of torch.hub's YOLOv5, and of torch.
_WRAPPERS = {
    "AutoShape": "model",
    "autoShape": "model",
    "DetectMultiBackend": "model",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}
_PAYLOADS = ("ema", "model", "state_dict", "model_state_dict")  # the order of bundler.models.module_tensors

_OTHER_ACTIVATION = f"Train it with a supported activation: {', '.join(ACTIVATIONS)} or LeakyReLU."

_YOLOV7 = ("IDetect", "IAuxDetect", "IBin", "IKeypoint")
_PLAIN = "Pass a checkpoint of the detection models n, s, m, l and x of github.com/ultralytics/yolov5"


def read_yolov5(
    state_dict: Mapping[str, Tensor],
    payload: Payload | None,
    *,
    build: Callable[..., nn.Module],
    name: str,
    num_classes: int | None,
    source: str,
) -> DetectorFile:
    """Return the state dict of a YOLOv5 checkpoint with the options of its network.

    Args:
        state_dict: the file's tensors by their keys in it.
        payload: the records of its pickle; None for a file of tensors alone.
        build: the parser, which takes `num_classes` and `architecture`.
        name: of the requested model.
        num_classes: value of --num-classes; None to take it from the file.
        source: the file's name in messages.

    Raises:
        CheckpointError: it contains another network, which the message names, or an unsupported one.
    """
    prefix, modules = _network_in(payload, source)
    tensors = _without_prefix(prefix, state_dict)
    _refuse_other_networks(tensors, modules, source)
    if ANCHORS not in tensors or tensors[ANCHORS].ndim != 3:
        return DetectorFile(state_dict=state_dict, num_classes=num_classes or 80)  # its keys are compared when it is loaded
    try:
        return _read(tensors, modules, payload, build, name, num_classes, source)
    except (DifferentModuleError, UnreadableError) as error:
        raise CheckpointError(f"the checkpoint {source} is not of a {name}: {error}", next_step=f"{_PLAIN}.") from error


def _network_in(payload: Payload | None, source: str) -> tuple[str, dict[str, PickledModule]]:
    """Return the prefix of a pickled network within its wrappers, and its modules by their keys without the prefix."""
    description = None if payload is None else payload.description
    entries = items_of(description)
    candidates = [description, *(entries.get(key) for key in _PAYLOADS)]
    root = next((candidate for candidate in candidates if is_module(candidate)), None)
    if root is None:
        return "", {}
    try:
        modules = pickled_modules(root)
    except UnreadableError as error:
        raise CheckpointError(
            f"the checkpoint {source} cannot be read: {error}", next_step="Download or save the file again."
        ) from error
    prefix = ""
    while True:
        top = modules[prefix.removesuffix(".")]
        if top.kind.name == "Ensemble" and len(top.children) > 1:
            raise CheckpointError(
                f"the checkpoint {source} is an ensemble of {len(top.children)} networks",
                next_step="Pass one of them.",
            )
        inner = "0" if top.kind.name == "Ensemble" else _WRAPPERS.get(top.kind.name)
        if inner not in top.children:
            break
        prefix += f"{inner}."
    return prefix, _below(prefix, modules) | {"": modules[prefix.removesuffix(".")]}


Item = TypeVar("Item")


def _below(prefix: str, items: Mapping[str, Item]) -> dict[str, Item]:
    return {key.removeprefix(prefix): item for key, item in items.items() if key.startswith(prefix)}


def _without_prefix(prefix: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the network's own keys; a part of the prefix may be removed already."""
    parts = prefix.split(".")
    for start in range(len(parts)):
        tensors = _below(".".join(parts[start:]), state_dict)
        if any(re.match(r"model\.\d+\.", key) for key in tensors):
            return tensors
    return dict(state_dict)


def _refuse_other_networks(tensors: Mapping[str, Tensor], modules: Mapping[str, PickledModule], source: str) -> None:
    """Raise a CheckpointError for related networks, recognized by the classes of a pickle or the keys of a state dict."""
    top = modules.get("")
    last = (
        next((modules[f"model.{name}"] for name in reversed(modules["model"].children)), None) if "model" in modules else None
    )
    head = "" if last is None else text_of(last.kind.name)
    if top is not None and top.kind.module.startswith("ultralytics."):
        file = items_of(top.attributes.get("yaml")).get("yaml_file")
        what = (
            f"of the ultralytics package ({text_of(file)}, head {head})"
            if file
            else f"of the ultralytics package (head {head})"
        )
        if isinstance(file, str) and file.startswith("yolov5"):
            what = f"a YOLOv5u, YOLOv5 with the anchor-free head of YOLOv8 ({text_of(file)})"
        raise _other(source, what, f"{_PLAIN}, whose names have no `u`; networks of the ultralytics package are not supported.")
    known = {
        "Segment": ("a YOLOv5-seg (instance segmentation)", f"{_PLAIN}, without -seg."),
        "Classify": ("a YOLOv5-cls (classification)", f"{_PLAIN}, without -cls."),
        **dict.fromkeys(_YOLOV7, (f"a YOLOv7 (its head is {head})", f"{_PLAIN}; YOLOv7 is not supported.")),
    }
    keys = "\n".join(tensors)
    if head in known or _matches(r"^model\.\d+\.proto\.", keys) or _matches(r"^model\.\d+\.linear\.weight$", keys):
        kind = head if head in known else "Segment" if ".proto." in keys else "Classify"
        raise _other(source, *known[kind])
    if _matches(r"\.dfl\.conv\.weight$", keys):
        raise _other(
            source,
            "of a YOLO with an anchor-free head (YOLOv5u, YOLOv8, YOLO11 and others of the ultralytics package)",
            f"{_PLAIN}, whose names have no `u`.",
        )
    anchors = next((key for key in tensors if re.fullmatch(r"model\.\d+\.anchors", key)), None)
    if anchors is not None and (anchors != ANCHORS or len(tensors[anchors]) != len(YoloV5.strides)):
        levels = len(tensors[anchors])
        if levels == 4 and anchors == "model.33.anchors":
            what = "a YOLOv5 with four detection layers (P6: yolov5n6, s6, m6, l6, x6)"
            raise _other(source, what, f"{_PLAIN}, without the 6; their input is 640 x 640 pixels.")
        older = "a YOLOv5 of release 1" if anchors == "model.27.anchors" and levels == 3 else ""
        what = older or f"a YOLO with {levels} detection layers, whose head is module {anchors.split('.')[1]} instead of 24"
        raise _other(source, what, f"{_PLAIN}, from release 2 on.")
    if last is not None and "model.24" in modules and head != "Detect":
        raise _other(source, f"a network whose last module is a {head} instead of a Detect", f"{_PLAIN}.")


def _matches(pattern: str, keys: str) -> bool:
    return re.search(pattern, keys, re.MULTILINE) is not None


def _other(source: str, what: str, next_step: str) -> CheckpointError:
    return CheckpointError(f"the checkpoint {source} is {what}", next_step=next_step)


def _read(
    tensors: Mapping[str, Tensor],
    pickled: Mapping[str, PickledModule],
    payload: Payload | None,
    build: Callable[..., nn.Module],
    name: str,
    num_classes: int | None,
    source: str,
) -> DetectorFile:
    release = release_in(tensors)
    if release == 3 and not pickled:
        raise CheckpointError(
            f"the checkpoint {source} is a state dict of a YOLOv5 of {_RELEASES[3]}, whose activations it does not name",
            next_step="Pass the .pt file that training wrote, which names them.",
        )
    modules = without_older_modules(pickled)
    norm_eps = _norm_eps(modules)
    own = without_older_names(tensors, norm_eps=norm_eps) if release != 6 or _is_fused(modules) else dict(tensors)
    _refuse_other_anchors(tensors, source)
    _refuse_other_size(own, name, source)
    anchors = own[ANCHORS].shape[1]
    if not 1 <= anchors <= MOST_ANCHORS or own[ANCHORS].shape[2] != 2:
        raise DifferentModuleError(f"its anchors have shape {list(own[ANCHORS].shape)}, not [3, 1 to {MOST_ANCHORS}, 2]")
    architecture = YoloV5Architecture(release=release, norm_eps=norm_eps, anchors=anchors)
    with torch.device("meta"):
        plain: Any = build(num_classes=num_classes or 80, architecture=architecture)
    found = plain.classes_in({key: tuple(value.shape) for key, value in own.items()})
    if found is None:
        raise DifferentModuleError(f"the channels of its heads are not a multiple of {anchors} anchors, or are different")
    classes = agreed_classes(found, num_classes, anchors=anchors, source=source)
    said = "all activations are assumed to be SiLU, because a state dict does not name them"
    if modules:
        with torch.device("meta"):
            plain = build(num_classes=classes, architecture=architecture)
        refuse_other_modules(plain, modules, payload)
        activations = tuple(_activation(modules, path, source) for path in plain.blocks())
        said = f"activations of the checkpoint: {describe_activations(activations)}"
        if set(activations) != {"SiLU"}:
            architecture = YoloV5Architecture(release=release, norm_eps=norm_eps, anchors=anchors, activations=activations)
    return DetectorFile(
        state_dict=own,
        num_classes=classes,
        options={} if architecture == YoloV5Architecture() else {"architecture": architecture},
        class_names=_class_names(modules, classes),
        network=f"YOLOv5 of {_RELEASES[release]}; {said}; anchors of the checkpoint",
    )


def _is_fused(modules: Mapping[str, PickledModule]) -> bool:
    return any(module.kind.name == "Conv" and "bn" not in module.children for module in modules.values())


def _norm_eps(modules: Mapping[str, PickledModule]) -> float:
    norms = (module.attributes.get("eps") for module in modules.values() if module.kind.name == "BatchNorm2d")
    eps = next((eps for eps in norms if isinstance(eps, float) and 0 < eps < 1), NORM_EPS)
    return float(eps)


def _refuse_other_anchors(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse a file whose anchors in cells differ from its anchors in pixels, which releases up to 5 store as well."""
    cells, pixels = tensors[ANCHORS].float(), tensors.get("model.24.anchor_grid")
    if pixels is None:
        return
    expected = cells * torch.tensor(YoloV5.strides, dtype=torch.float32).reshape(-1, 1, 1)
    if pixels.numel() != expected.numel() or not torch.allclose(pixels.float().reshape(expected.shape), expected, rtol=0.01):
        raise CheckpointError(
            f"the checkpoint {source} is inconsistent: model.24.anchor_grid is not model.24.anchors times strides 8, 16, 32",
            next_step="Pass a checkpoint whose anchors were not edited, or train it again.",
        )


def _refuse_other_size(tensors: Mapping[str, Tensor], name: str, source: str) -> None:
    stem = tensors.get(STEM)
    if stem is None or stem.ndim != 4:
        return
    if stem.shape[1] != 3:
        raise CheckpointError(
            f"the input of the checkpoint {source} has {stem.shape[1]} channels; only RGB (3) is supported",
            next_step=f"{_PLAIN}.",
        )
    found = _SIZES.get(stem.shape[0])
    if found is not None and found != name and name in _SIZES.values():
        raise CheckpointError(
            f"the checkpoint {source} is of a {found}, not of a {name}: its first convolution has {stem.shape[0]} channels",
            next_step=f"Build that model: bundler bundle {found} …",
        )


def _activation(modules: Mapping[str, PickledModule], block: str, source: str) -> str:
    """Return the name of a block's activation.

    Raises:
        CheckpointError: it is not supported in INT8.
    """
    module = modules.get(f"{block}.act")
    if module is None:
        raise DifferentModuleError(f"{block}.act is missing")
    name = module.kind.name.removeprefix("Quantizable")  # in a pickled model of this package
    if module.kind.module.startswith(("torch.nn.modules.", "bundler.quantization.")) or _of_ultralytics(module):
        slope = module.attributes.get("negative_slope", 0.01)
        if name == "LeakyReLU" and isinstance(slope, float):
            return leaky_relu(slope)
        if name in ACTIVATIONS:
            return name
    raise CheckpointError(
        f"the checkpoint {source} has the activation {text_of(str(module.kind))} ({block}.act), which is not supported in INT8",
        next_step=_OTHER_ACTIVATION,
    )


def _of_ultralytics(module: PickledModule) -> bool:
    return module.kind.module.endswith("utils.activations")


def _class_names(modules: Mapping[str, PickledModule], classes: int) -> tuple[str, ...] | None:
    """Return the class names stored in the network, as a list or by number; None unless each class has one."""
    if not modules:
        return None
    names = modules[""].attributes.get("names")
    if isinstance(names, Object):
        by_number = {key: value for key, value in names.items if isinstance(key, int)}
        names = [by_number.get(number) for number in range(classes)]
    if not isinstance(names, list) or len(names) != classes or not all(isinstance(name, str) for name in names):
        return None
    return tuple(text_of(name) for name in names)
