"""Darknet's `.weights` files: a header, then the numbers of one convolution after the other, without names or shapes."""

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
_NOT_DARKNET = (
    "Give a file that Darknet wrote (yolov3.weights, yolov4.weights); other formats need their own suffix (.pt, .pth)."
)
_OTHER_SIZE = (
    "Give the number of classes that the weights were trained with (--num-classes) and the model that they belong to, "
    "or download the file again if it was cut off."
)
_BACKBONE = (
    "Train the detector with labels first, and give the file that ended its training; --mode int8-qat then trains it for INT8, "
    "as a whole or its backbone alone, on pictures without labels."
)


# Numbers of other networks' files: those that do not depend on the classes, and those for each class; counted from their cfgs.
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
_MOST_CLASSES = 1000  # for which a length is taken to be another network's; yolov3-openimages has 601


@dataclass(frozen=True, kw_only=True)
class DarknetLayer:
    """A convolution and its BatchNorm, by their names in the model; without one the convolution has a bias."""

    convolution: str
    norm: str | None


def read_darknet_weights(
    content: bytes, layers: Sequence[DarknetLayer], shapes: Mapping[str, tuple[int, ...]], *, source: str
) -> dict[str, Tensor]:
    """Return the float32 state dict of `layers`, which come in the file's order.

    The header ends in the number of pictures seen: 4 bytes below version 0.2, 8 bytes from there on. Some programs write the
    other size; where the file is as long as that asks for, it is read so.

    `shapes` are those of the model's state dict, `source` is what messages call the file. A file says nothing about shapes,
    so that only its length tells whether it belongs to the model.

    Raises:
        CheckpointError: it is no Darknet file, its length is that of another network, or a value is not finite.
    """
    expected = sum(_size(shapes[key]) for layer in layers for key in _stored_keys(layer))
    numbers, remainder = _numbers(content, expected, source)
    state_dict: dict[str, Tensor] = {}
    position = 0
    for index, layer in enumerate(layers):
        needed = sum(_size(shapes[key]) for key in _stored_keys(layer))
        if index and position == len(numbers) and not remainder:
            raise CheckpointError(
                f"the checkpoint {source} holds the first {index} of {len(layers)} convolutions, which a detector's training "
                "begins with (darknet53.conv.74 is such a backbone): nothing predicts boxes yet",
                next_step=_BACKBONE,
            )
        if (found := len(numbers) - position) < needed:
            _refuse_relative(len(numbers), expected, remainder, source)
            raise CheckpointError(
                f"the checkpoint {source} ends in the layer {layer.convolution}, with {found:,} of its {needed:,} numbers; "
                f"the model has {expected:,}, the file {len(numbers):,}",
                next_step=_OTHER_SIZE,
            )
        for key in _stored_keys(layer):
            size = _size(shapes[key])
            values = numbers[position : position + size]
            if not np.isfinite(values).all():
                raise CheckpointError(
                    f"the checkpoint {source} holds values that are not finite, first in {key}",
                    next_step="It is damaged, or the training that made it diverged; download it again or give an earlier one.",
                )
            state_dict[key] = torch.from_numpy(values.astype(np.float32)).reshape(shapes[key])
            position += size
        if (counter := f"{layer.norm}.num_batches_tracked") in shapes:
            state_dict[counter] = torch.zeros(shapes[counter], dtype=torch.int64)
    if left := len(numbers) - position:
        _refuse_relative(len(numbers), expected, remainder, source)
        raise CheckpointError(
            f"the checkpoint {source} has {left:,} numbers left after the last layer, {layers[-1].convolution}, of "
            f"{expected:,} numbers in all: it belongs to a larger network or another number of classes",
            next_step=_OTHER_SIZE,
        )
    if remainder:
        raise CheckpointError(
            f"the checkpoint {source} has {remainder} bytes left after the last layer, {layers[-1].convolution}: it is damaged",
            next_step="Download the file again.",
        )
    return state_dict


def _stored_keys(layer: DarknetLayer) -> list[str]:
    """Return the keys in the order in which Darknet writes their numbers."""
    if layer.norm is None:
        return [f"{layer.convolution}.bias", f"{layer.convolution}.weight"]
    return [
        *(f"{layer.norm}.{name}" for name in ("bias", "weight", "running_mean", "running_var")),
        f"{layer.convolution}.weight",
    ]


def _size(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def darknet_classes(content: bytes, numbers_of: Callable[[int], int]) -> int | None:
    """Return the number of classes with which a network has as many numbers as the file; None where there is none.

    Args:
        content: of the file.
        numbers_of: the numbers of the network with that many classes, which grow by the same with each class.
    """
    one, each = numbers_of(1), numbers_of(2) - numbers_of(1)
    for images_seen in (8, 4):
        numbers = (len(content) - _VERSION.size - images_seen) // 4  # a part of one is left where the file is damaged
        classes, left = divmod(numbers - one, each)
        if not left and classes >= 0:
            return classes + 1
    return None


def _refuse_relative(numbers: int, expected: int, remainder: int, source: str) -> None:
    """Name a file by its length where that is a known one.

    Raises:
        CheckpointError: it is one of another network's.
    """
    if remainder:
        return
    if numbers in _BACKBONES:
        raise CheckpointError(
            f"the checkpoint {source} has as many numbers as {_BACKBONES[numbers]}, which a detector's training begins with",
            next_step=_BACKBONE,
        )
    for name, (rest, each) in _RELATIVES.items():
        classes, left = divmod(numbers - rest, each)
        own = not (expected - rest) % each  # the same network with other classes, which the caller names
        if not left and not own and 1 <= classes <= _MOST_CLASSES:
            raise CheckpointError(
                f"the checkpoint {source} has {numbers:,} numbers, as a {name} with {classes} classes has",
                next_step=f"Build that model: bundler bundle {name} … --num-classes {classes}."
                if name in {"yolov3", "yolov4"}
                else "Of Darknet's networks yolov3 and yolov4 are built; give the weights of one of those.",
            )


def _numbers(content: bytes, expected: int, source: str) -> tuple[NDArray[np.float32], int]:
    """Return what follows the header, little-endian float32 [N], and how many bytes are left behind it (0 to 3)."""
    if len(content) < _VERSION.size:
        raise CheckpointError(
            f"the checkpoint {source} is shorter than a Darknet header: {len(content)} bytes", next_step=_NOT_DARKNET
        )
    major, minor, revision = _VERSION.unpack_from(content)
    # Darknet reads versions above 1000 as "these matrices are transposed", which no published file is.
    if not (0 <= major <= 10 and 0 <= minor <= 1000 and revision >= 0):
        raise CheckpointError(
            f"the checkpoint {source} is no Darknet file: its header would be of version {major}.{minor}.{revision}",
            next_step=_NOT_DARKNET,
        )
    images_seen = 8 if major * 10 + minor >= 2 else 4
    start = _VERSION.size + images_seen
    if len(content) < start:
        raise CheckpointError(
            f"the checkpoint {source} is shorter than a Darknet header: {len(content)} bytes", next_step=_NOT_DARKNET
        )
    count, remainder = divmod(len(content) - start, 4)
    # Of pictures seen, the upper four bytes are 0 up to four thousand millions; a first number is never exactly 0 in training.
    upper_bytes_seen = content[_VERSION.size + 4 : _VERSION.size + 8] == bytes(4)
    other = _VERSION.size + 12 - images_seen
    if len(content) == other + 4 * expected and upper_bytes_seen == (images_seen == 4):
        start, count = other, expected
    return np.frombuffer(content, "<f4", count, start), remainder
