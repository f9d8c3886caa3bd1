"""Darknet's `.weights` files: a header, then the float32 values of each convolution, without names or shapes."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bundler.errors import CheckpointError

__all__ = ["DarknetLayer", "darknet_classes", "read_darknet_weights"]

_VERSION = struct.Struct("<iii")  # major, minor, revision
_NOT_DARKNET = "Pass a file that Darknet wrote (yolov3.weights, yolov4.weights), or a .pt, .pth or .safetensors file."
_OTHER_SIZE = (
    "Pass the number of classes that the weights were trained with (--num-classes) and the matching model, or download the "
    "file again if it is truncated."
)
_BACKBONE = (
    "Train the detector on labelled images first, and pass the final weights. --mode int8-qat then trains it for INT8, whole "
    "or its backbone, on images without labels."
)


# Number of values in the files of known networks: independent of the classes, and for each class; counted from their cfgs.
_RELATIVES = {
    "yolov3": (61_570_957, 5385),
    "yolov3-spp": (62_621_581, 5385),
    "yolov3-tiny": (8_673_934, 2310),
    "yolov3-tiny-prn": (4_847_118, 1158),
    "yolov3-tiny_3l": (9_004_573, 2697),
    "yolov3_5l": (61_922_411, 5967),
    "yolov4": (63_998_605, 5385),
    "yolov4-csp": (52_555_405, 5385),
    "yolov4-p5": (70_343_068, 7180),
    "yolov4-p6": (126_814_640, 11280),
    "yolov4-tiny": (5_878_014, 2310),
    "yolov4-tiny-3l": (6_118_285, 2697),
    "yolov4x-mish": (99_308_717, 6729),
    "yolov2": (50_573_561, 5125),
    "yolov2-tiny": (11_031_945, 2565),
    "yolov2-tiny-voc": (15_765_385, 5125),
    "yolov7": (36_543_757, 5385),
    "yolov7-tiny": (6_026_125, 2697),
    "yolov7x": (70_871_365, 6729),
}
_BACKBONES = {
    40_620_640: "darknet53.conv.74, the backbone of yolov3",
    42_509_664: "yolov4.conv.137, the backbone of yolov4",
    36_637_024: "yolov4-csp.conv.142, the backbone of yolov4-csp",
    4_947_424: "yolov4-tiny.conv.29, the backbone of yolov4-tiny",
    1_575_792: "yolov3-tiny.conv.11, the backbone of yolov3-tiny",
    7_743_344: "yolov3-tiny.conv.15, the backbone of yolov3-tiny",
}
_MOST_CLASSES = 1000  # of another network that a length is attributed to; yolov3-openimages has 601


@dataclass(frozen=True, kw_only=True)
class DarknetLayer:
    """A convolution and its BatchNorm, by their names in the model; without a BatchNorm the convolution has a bias."""

    convolution: str
    norm: str | None


def read_darknet_weights(
    content: bytes, layers: Sequence[DarknetLayer], shapes: Mapping[str, tuple[int, ...]], *, source: str
) -> dict[str, Tensor]:
    """Return the float32 state dict of `layers`.

    The header ends with the number of training images: 4 bytes below version 0.2, 8 bytes since then. Some programs write the
    other size; it is recognized by the file's length. A file has no shapes: only its length shows whether it fits the model.

    Args:
        content: of the file.
        layers: in the order of the file.
        shapes: of the model's state dict.
        source: the file's name in messages.

    Raises:
        CheckpointError: it is not a Darknet file, its length does not fit the model, or a value is not finite.
    """
    expected = sum(_size(shapes[key]) for layer in layers for key in _stored_keys(layer))
    numbers, remainder = _numbers(content, expected, source)
    state_dict: dict[str, Tensor] = {}
    position = 0
    for index, layer in enumerate(layers):
        needed = sum(_size(shapes[key]) for key in _stored_keys(layer))
        if index and position == len(numbers) and not remainder:
            raise CheckpointError(
                f"the checkpoint {source} contains the first {index} of {len(layers)} convolutions: a backbone to start "
                "training from (like darknet53.conv.74), without detection heads",
                next_step=_BACKBONE,
            )
        if (found := len(numbers) - position) < needed:
            _refuse_relative(len(numbers), expected, remainder, source)
            raise CheckpointError(
                f"the checkpoint {source} ends within the layer {layer.convolution}, with {found:,} of its {needed:,} values; "
                f"the model has {expected:,} values, the file {len(numbers):,}",
                next_step=_OTHER_SIZE,
            )
        for key in _stored_keys(layer):
            size = _size(shapes[key])
            values = numbers[position : position + size]
            if not np.isfinite(values).all():
                raise CheckpointError(
                    f"the checkpoint {source} contains NaN or infinite values, first in {key}",
                    next_step="Download it again, or pass an earlier checkpoint if the training diverged.",
                )
            state_dict[key] = torch.from_numpy(values.astype(np.float32)).reshape(shapes[key])
            position += size
        if (counter := f"{layer.norm}.num_batches_tracked") in shapes:
            state_dict[counter] = torch.zeros(shapes[counter], dtype=torch.int64)
    if left := len(numbers) - position:
        _refuse_relative(len(numbers), expected, remainder, source)
        raise CheckpointError(
            f"the checkpoint {source} has {left:,} values more than the model, which has {expected:,}: it is of a larger "
            "network or another number of classes",
            next_step=_OTHER_SIZE,
        )
    if remainder:
        raise CheckpointError(
            f"the checkpoint {source} has {remainder} bytes after the last layer, {layers[-1].convolution}: it is damaged",
            next_step="Download the file again.",
        )
    return state_dict


def _stored_keys(layer: DarknetLayer) -> list[str]:
    """Return the keys in the order in which Darknet writes their values."""
    if layer.norm is None:
        return [f"{layer.convolution}.bias", f"{layer.convolution}.weight"]
    return [
        *(f"{layer.norm}.{name}" for name in ("bias", "weight", "running_mean", "running_var")),
        f"{layer.convolution}.weight",
    ]


def _size(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def darknet_classes(content: bytes, numbers_of: Callable[[int], int]) -> int | None:
    """Return the number of classes for which a network has as many values as the file; None if there is none.

    Args:
        content: of the file.
        numbers_of: number of values of the network for a number of classes; linear in it.
    """
    one, each = numbers_of(1), numbers_of(2) - numbers_of(1)
    for images_seen in (8, 4):
        numbers = (len(content) - _VERSION.size - images_seen) // 4  # a part of one is left if the file is damaged
        classes, left = divmod(numbers - one, each)
        if not left and classes >= 0:
            return classes + 1
    return None


def _refuse_relative(numbers: int, expected: int, remainder: int, source: str) -> None:
    """Refuse a file whose length is that of another known network.

    Raises:
        CheckpointError: with the name of that network.
    """
    if remainder:
        return
    if numbers in _BACKBONES:
        raise CheckpointError(
            f"the checkpoint {source} has the length of {_BACKBONES[numbers]}, without detection heads",
            next_step=_BACKBONE,
        )
    for name, (rest, each) in _RELATIVES.items():
        classes, left = divmod(numbers - rest, each)
        own = not (expected - rest) % each  # the same network with other classes, which the caller names
        if not left and not own and 1 <= classes <= _MOST_CLASSES:
            raise CheckpointError(
                f"the checkpoint {source} has {numbers:,} values, the number of a {name} with {classes} classes",
                next_step=f"Build that model: bundler bundle {name} … --num-classes {classes}."
                if name in {"yolov3", "yolov4"}
                else "Pass the weights of a yolov3 or yolov4, the supported Darknet networks.",
            )


def _numbers(content: bytes, expected: int, source: str) -> tuple[NDArray[np.float32], int]:
    """Return the values after the header, little-endian float32 [N], and the number of bytes after them (0 to 3)."""
    if len(content) < _VERSION.size:
        raise CheckpointError(
            f"the checkpoint {source} is shorter than a Darknet header: {len(content)} bytes", next_step=_NOT_DARKNET
        )
    major, minor, revision = _VERSION.unpack_from(content)
    # For Darknet, versions above 1000 mean transposed matrices, which no published file has.
    if not (0 <= major <= 10 and 0 <= minor <= 1000 and revision >= 0):
        raise CheckpointError(
            f"the checkpoint {source} is not a Darknet file: its header would have the version {major}.{minor}.{revision}",
            next_step=_NOT_DARKNET,
        )
    images_seen = 8 if major * 10 + minor >= 2 else 4
    start = _VERSION.size + images_seen
    if len(content) < start:
        raise CheckpointError(
            f"the checkpoint {source} is shorter than a Darknet header: {len(content)} bytes", next_step=_NOT_DARKNET
        )
    count, remainder = divmod(len(content) - start, 4)
    # The upper four bytes of the image count are 0 below 2^32 images; a trained first value is never exactly 0.
    upper_bytes_seen = content[_VERSION.size + 4 : _VERSION.size + 8] == bytes(4)
    other = _VERSION.size + 12 - images_seen
    if len(content) == other + 4 * expected and upper_bytes_seen == (images_seen == 4):
        start, count = other, expected
    return np.frombuffer(content, "<f4", count, start), remainder
