"""Convert YOLOv5 networks of releases 2 to 5, and fused ones, to equivalent networks of releases 6 and 7.

Three parts differ in form only. "Focus" puts every second pixel into a channel of its own and convolves 3 x 3: a 6 x 6
convolution of stride 2. "SPP" takes maxima over 5, 9 and 13 cells: "SPPF" gets them by pooling over 5 repeatedly.
"BottleneckCSP" normalises two halves together: a BatchNorm for each is the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from bundler.models.pickle_interpreter import Global
from bundler.models.pickled_modules import PickledModule, text_of
from bundler.models.yolov5 import Release

__all__ = ["DifferentModuleError", "release_in", "without_older_modules", "without_older_names"]

_NORM = ("weight", "bias", "running_mean", "running_var")
_FOCUS = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
_CONV = Global("models.common", "Conv")


class DifferentModuleError(ValueError):
    """A module that has no equivalent: its path, and how it differs."""


def release_in(keys: Mapping[str, object]) -> Release:
    """Return the release of the network to which the keys of a state dict belong."""
    if "model.2.cv4.conv.weight" in keys:
        return 3
    return 5 if "model.0.conv.conv.weight" in keys else 6


def without_older_names(state_dict: Mapping[str, Tensor], *, norm_eps: float) -> dict[str, Tensor]:
    """Return the state dict with the keys of releases 6 and 7, in which each convolution has a BatchNorm.

    Args:
        state_dict: of any release from 2 to 7, also after Ultralytics' `fuse()`.
        norm_eps: of the BatchNorms; a fused convolution gets an identity BatchNorm.
    """
    tensors = {key: value for key, value in state_dict.items() if not key.endswith(".anchor_grid")}
    for key in [key for key in tensors if key.startswith(("model.0.conv.conv.", "model.0.conv.bn."))]:
        tensors[key.replace("model.0.conv.", "model.0.", 1)] = tensors.pop(key)
    if release_in(state_dict) != 6 and (stem := tensors.get("model.0.conv.weight")) is not None:
        tensors["model.0.conv.weight"] = _strided(stem)
    for block in [
        key.removesuffix("cv4.conv.weight") for key in tensors if re.fullmatch(r"model\.\d+\.cv4\.conv\.weight", key)
    ]:
        _split_norm(tensors, block)
    for key in [key for key in tensors if key.endswith(".conv.bias")]:
        norm = f"{key.removesuffix('conv.bias')}bn"
        if f"{norm}.weight" not in tensors:
            bias = tensors.pop(key)
            kept = (torch.ones_like(bias), bias, torch.zeros_like(bias), torch.full_like(bias, 1 - norm_eps))
            tensors |= {f"{norm}.{name}": value for name, value in zip(_NORM, kept, strict=True)}
    return tensors


def _strided(weight: Tensor) -> Tensor:
    """Return the weight [outputs, C, 6, 6] that is equivalent to a convolution [outputs, 4 · C, 3, 3] after Focus.

    The channels after Focus are ordered by even rows and columns, odd rows, odd columns, and both odd.
    """
    if weight.ndim != 4 or weight.shape[1] % 4 or weight.shape[2:] != (3, 3):
        return weight  # of another network, which the comparison of shapes refuses
    strided = weight.new_zeros(weight.shape[0], weight.shape[1] // 4, 6, 6)
    for part, (row, column) in zip(weight.chunk(4, 1), ((0, 0), (1, 0), (0, 1), (1, 1)), strict=True):
        strided[:, :, row::2, column::2] = part
    return strided


def _split_norm(tensors: dict[str, Tensor], block: str) -> None:
    """Split the BatchNorm of a BottleneckCSP into one for each half: first the residuals' (cv3), then the other (cv2)."""
    for half in ("cv2", "cv3"):
        if f"{block}{half}.weight" in tensors:
            tensors[f"{block}{half}.conv.weight"] = tensors.pop(f"{block}{half}.weight")
    for name in _NORM:
        if (value := tensors.pop(f"{block}bn.{name}", None)) is not None:
            tensors[f"{block}cv3.bn.{name}"], tensors[f"{block}cv2.bn.{name}"] = value.tensor_split(2)
    if (counter := tensors.pop(f"{block}bn.num_batches_tracked", None)) is not None:
        tensors |= {f"{block}{half}.bn.num_batches_tracked": counter for half in ("cv2", "cv3")}


def without_older_modules(modules: Mapping[str, PickledModule]) -> dict[str, PickledModule]:
    """Return the modules with the paths and attributes of releases 6 and 7.

    Raises:
        DifferentModuleError: a module's attributes have no equivalent.
    """
    rewritten = dict(modules)
    for path, module in modules.items():
        if path not in rewritten:
            continue  # a part of one that was rewritten
        match module.kind.name:
            case "Focus" if path == "model.0":
                _rewrite_focus(rewritten)
            case "SPP":
                _rewrite_pooling(rewritten, path)
            case "BottleneckCSP":
                _rewrite_older_stage(rewritten, path)
    return rewritten


def _rewrite_focus(modules: dict[str, PickledModule]) -> None:
    convolution = modules.get("model.0.conv.conv")
    if convolution is None:
        raise DifferentModuleError("model.0 is a Focus without a convolution")
    for name, value in _FOCUS.items():
        if (found := convolution.attributes.get(name, value)) != value:
            raise DifferentModuleError(f"model.0.conv.conv has {name} {text_of(found)}, a Focus has {value}")
    inputs = convolution.attributes.get("in_channels")
    changed = {"in_channels": inputs // 4 if isinstance(inputs, int) else inputs}
    changed |= {"kernel_size": (6, 6), "stride": (2, 2), "padding": (2, 2)}
    modules["model.0"] = replace(modules["model.0"], kind=_CONV)
    for path in [path for path in modules if path.startswith("model.0.conv.")]:
        modules[path.replace("model.0.conv.", "model.0.", 1)] = modules.pop(path)
    modules["model.0.conv"] = replace(convolution, attributes={**convolution.attributes, **changed})


def _rewrite_pooling(modules: dict[str, PickledModule], path: str) -> None:
    names = modules[f"{path}.m"].children if f"{path}.m" in modules else ()
    pools = [modules.pop(f"{path}.m.{name}") for name in names if f"{path}.m.{name}" in modules]
    sizes = tuple(pool.attributes.get("kernel_size") for pool in pools)
    paddings = tuple(pool.attributes.get("padding") for pool in pools)
    if sizes != (5, 9, 13) or paddings != (2, 4, 6) or any(pool.attributes.get("stride") != 1 for pool in pools):
        raise DifferentModuleError(f"{path} is an SPP over {text_of(sizes)} cells, not over (5, 9, 13) with stride 1")
    modules[f"{path}.m"] = pools[0]
    modules[path] = replace(modules[path], kind=Global("models.common", "SPPF"))


def _rewrite_older_stage(modules: dict[str, PickledModule], path: str) -> None:
    norm, activation = modules.pop(f"{path}.bn", None), modules.pop(f"{path}.act", None)
    for half in ("cv2", "cv3"):
        convolution = modules.get(f"{path}.{half}")
        if convolution is None or norm is None or activation is None:
            raise DifferentModuleError(f"{path} is a BottleneckCSP without its {half}, bn or act")
        features = norm.attributes.get("num_features")
        halved = {**norm.attributes, "num_features": features // 2 if isinstance(features, int) else features}
        modules[f"{path}.{half}.conv"] = convolution
        modules[f"{path}.{half}.bn"] = replace(norm, attributes=halved)
        modules[f"{path}.{half}.act"] = activation
        modules[f"{path}.{half}"] = PickledModule(kind=_CONV, attributes={}, children=("conv", "bn", "act"))
