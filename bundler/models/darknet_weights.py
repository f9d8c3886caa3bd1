"""Darknet's `.weights` files: a header, then the numbers of one convolution after the other, without names or shapes."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bundler.errors import CheckpointError

__all__ = ["DarknetLayer", "read_darknet_weights"]

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


@dataclass(frozen=True, kw_only=True)
class DarknetLayer:
    """A convolution and its BatchNorm, by their names in the model; without one the convolution has a bias."""

    convolution: str
    norm: str | None


def read_darknet_weights(
    content: bytes, layers: Sequence[DarknetLayer], shapes: Mapping[str, tuple[int, ...]], *, source: str
) -> dict[str, Tensor]:
    """Return the float32 state dict of `layers`, which come in the file's order.

    `shapes` are those of the model's state dict, `source` is what messages call the file. A file says nothing about shapes,
    so that only its length tells whether it belongs to the model.

    Raises:
        CheckpointError: it is no Darknet file, its length is that of another network, or a value is not finite.
    """
    numbers, remainder = _numbers(content, source)
    expected = sum(_size(shapes[key]) for layer in layers for key in _stored_keys(layer))
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


def _numbers(content: bytes, source: str) -> tuple[NDArray[np.float32], int]:
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
    return np.frombuffer(content, "<f4", count, start), remainder
