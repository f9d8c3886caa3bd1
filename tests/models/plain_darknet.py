"""yolov3.cfg and yolov4.cfg as published, and an interpreter of cfg and weights in plain torch, without the package."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

YOLOV3_ANCHORS = "10,13, 16,30, 33,23, 30,61, 62,45, 59,119, 116,90, 156,198, 373,326"
YOLOV4_ANCHORS = "12, 16, 19, 36, 40, 28, 36, 75, 76, 55, 72, 146, 142, 110, 192, 243, 459, 401"


def conv(filters: int, size: int, stride: int = 1, activation: str = "leaky") -> str:
    norm = "" if activation == "linear" else "batch_normalize=1\n"
    return f"[convolutional]\n{norm}filters={filters}\nsize={size}\nstride={stride}\npad=1\nactivation={activation}\n"


def yolo(mask: str, anchors: str, classes: int, scale: float = 1.0) -> str:
    return f"[yolo]\nmask = {mask}\nanchors = {anchors}\nclasses={classes}\nnum=9\njitter=.3\nscale_x_y = {scale}\n"


def head(width: int, *layer: object) -> str:
    classes = layer[2]
    assert isinstance(classes, int)
    return conv(width, 3) + conv(3 * (5 + classes), 1, activation="linear") + yolo(*layer)  # type: ignore[arg-type]


def five(width: int) -> str:
    return (conv(width, 1) + conv(2 * width, 3)) * 2 + conv(width, 1)


def yolov3(*, classes: int = 80, anchors: str = YOLOV3_ANCHORS) -> str:
    text = "[net]\n# Testing\nbatch=1\nwidth=416\nheight=416\nchannels=3\n\n" + conv(32, 3)
    for width, depth in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        text += f"# Downsample\n{conv(width, 3, 2)}"
        text += f"{conv(width // 2, 1)}{conv(width, 3)}[shortcut]\nfrom=-3\nactivation=linear\n" * depth
    text += five(512) + head(1024, "6,7,8", anchors, classes)
    text += f"[route]\nlayers = -4\n{conv(256, 1)}[upsample]\nstride=2\n[route]\nlayers = -1, 61\n"
    text += five(256) + head(512, "3,4,5", anchors, classes)
    text += f"[route]\nlayers = -4\n{conv(128, 1)}[upsample]\nstride=2\n[route]\nlayers = -1, 36\n"
    return text + five(128) + head(256, "0,1,2", anchors, classes)


def yolov4(*, classes: int = 80, anchors: str = YOLOV4_ANCHORS) -> str:
    text = "[net]\nbatch=64\nwidth=608\nheight=608\nchannels=3\nmomentum=0.949\n\n" + conv(32, 3, activation="mish")
    for width, depth, half in ((64, 1, 64), (128, 2, 64), (256, 8, 128), (512, 8, 256), (1024, 4, 512)):
        hidden = 32 if width == 64 else half
        text += conv(width, 3, 2, "mish") + conv(half, 1, 1, "mish") + "[route]\nlayers = -2\n" + conv(half, 1, 1, "mish")
        block = conv(hidden, 1, 1, "mish") + conv(half, 3, 1, "mish") + "[shortcut]\nfrom=-3\nactivation=linear\n"
        text += (
            block * depth + conv(half, 1, 1, "mish") + f"[route]\nlayers = -1,-{3 * depth + 4}\n" + conv(width, 1, 1, "mish")
        )
    text += conv(512, 1) + conv(1024, 3) + conv(512, 1)
    text += "### SPP ###\n[maxpool]\nstride=1\nsize=5\n[route]\nlayers=-2\n[maxpool]\nstride=1\nsize=9\n[route]\nlayers=-4\n"
    text += "[maxpool]\nstride=1\nsize=13\n[route]\nlayers=-1,-3,-5,-6\n### End SPP ###\n"
    text += conv(512, 1) + conv(1024, 3) + conv(512, 1)
    for width, lateral in ((256, 85), (128, 54)):
        text += (
            conv(width, 1) + f"[upsample]\nstride=2\n[route]\nlayers = {lateral}\n{conv(width, 1)}[route]\nlayers = -1, -3\n"
        )
        text += five(width)
    text += head(256, "0,1,2", anchors, classes, 1.2)
    for width, wider, mask, scale in ((256, -16, "3,4,5", 1.1), (512, -37, "6,7,8", 1.05)):
        text += f"[route]\nlayers = -4\n{conv(width, 3, 2)}[route]\nlayers = -1, {wider}\n"
        text += five(width) + head(2 * width, mask, anchors, classes, scale)
    return text


Section = tuple[str, dict[str, str]]


def sections_of(text: str) -> list[Section]:
    found: list[Section] = []
    for line in text.splitlines():
        if line.startswith("["):
            found.append((line.strip("[]"), {}))
        elif "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            found[-1][1][key.strip()] = value.strip()
    return found[1:]


def sources(index: int, text: str) -> list[int]:
    return [int(part) if int(part) >= 0 else index + int(part) for part in text.split(",")]


def random_weights(text: str, *, seed: int = 0) -> np.ndarray:
    """Return float32 numbers as Darknet stores them, with which the outputs depend on every part."""
    generator = np.random.default_rng(seed)
    channels: list[int] = []
    parts: list[np.ndarray] = []
    before = 3
    for index, (kind, options) in enumerate(sections_of(text)):
        if kind == "convolutional":
            filters, size = int(options["filters"]), int(options["size"])
            fan = before * size * size
            parts.append(generator.standard_normal(filters, dtype=np.float32) * np.float32(0.3))
            if "batch_normalize" in options:
                parts.append(generator.random(filters, dtype=np.float32) * np.float32(0.5) + np.float32(0.6))
                parts.append(generator.standard_normal(filters, dtype=np.float32) * np.float32(0.1))
                parts.append(generator.random(filters, dtype=np.float32) + np.float32(0.5))
            parts.append(generator.standard_normal(filters * fan, dtype=np.float32) * np.float32(fan**-0.5))
            before = filters
        elif kind == "route":
            before = sum(channels[source] for source in sources(index, options["layers"]))
        channels.append(before)
    return np.concatenate(parts)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky": lambda x: functional.leaky_relu(x, 0.1),
    "mish": lambda x: x * torch.tanh(functional.softplus(x)),
    "relu": torch.relu,
    "swish": lambda x: x * torch.sigmoid(x),
    "linear": lambda x: x,
}


def run(text: str, numbers: np.ndarray, x: Tensor) -> Tensor:
    """Return [boxes, 5 + classes] of one image [1, 3, H, W], ordered by stride, anchor, row and column."""
    outputs: list[Tensor] = []
    boxes: dict[int, Tensor] = {}
    position = 0
    size_of_input = x.shape[-1]

    def take(*shape: int) -> Tensor:
        nonlocal position
        count = int(np.prod(shape))
        position += count
        return torch.from_numpy(numbers[position - count : position]).reshape(shape)

    for index, (kind, options) in enumerate(sections_of(text)):
        if kind == "convolutional":
            filters, size = int(options["filters"]), int(options["size"])
            if "batch_normalize" in options:
                bias, weight, mean, variance = (take(filters) for _ in range(4))
                x = functional.conv2d(x, take(filters, x.shape[1], size, size), None, int(options["stride"]), size // 2)
                x = functional.batch_norm(x, mean, variance, weight, bias, eps=1e-5)
            else:
                bias = take(filters)
                x = functional.conv2d(x, take(filters, x.shape[1], size, size), bias, int(options["stride"]), size // 2)
            x = ACTIVATIONS[options["activation"]](x)
        elif kind == "shortcut":
            x = x + outputs[sources(index, options["from"])[0]]
        elif kind == "route":
            x = torch.cat([outputs[source] for source in sources(index, options["layers"])], 1)
        elif kind == "upsample":
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        elif kind == "maxpool":
            x = functional.max_pool2d(x, int(options["size"]), 1, int(options["size"]) // 2)
        else:
            stride = size_of_input // x.shape[-1]
            boxes[stride] = decoded(x, options, stride)
        outputs.append(x)
    assert position == len(numbers)
    return torch.cat([boxes[stride] for stride in sorted(boxes)])


def decoded(x: Tensor, options: dict[str, str], stride: int) -> Tensor:
    flat = [float(part) for part in options["anchors"].split(",")]
    mask = [int(part) for part in options["mask"].split(",")]
    scale = float(options["scale_x_y"])
    _, _, height, width = x.shape
    rows = []
    for number, values in zip(mask, x[0].chunk(len(mask)), strict=True):
        columns, lines = torch.arange(width).float(), torch.arange(height).float()[:, None]
        left = (torch.sigmoid(values[0]) * scale - (scale - 1) / 2 + columns) * stride
        top = (torch.sigmoid(values[1]) * scale - (scale - 1) / 2 + lines) * stride
        wide, high = values[2].exp() * flat[2 * number], values[3].exp() * flat[2 * number + 1]
        rows.append(torch.stack([left, top, wide, high, *torch.sigmoid(values[4:])], -1).reshape(height * width, -1))
    return torch.cat(rows)
