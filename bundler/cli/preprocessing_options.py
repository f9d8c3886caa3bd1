"""The options that say how pictures are prepared, for weights that were trained with other preprocessing than usual."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, get_args

import click

from bundler.cli.parameters import parse_pixels, parse_values
from bundler.data.preprocessing import Channels, Fit, Interpolation
from bundler.preprocessing_request import PreprocessingRequest

__all__ = ["preprocessing_options"]

_OPTIONS = (
    click.option(
        "--mean",
        type=parse_values,
        metavar="R,G,B",
        help="Subtracted from pixels / 255, in the order of the channels; one number stands for all three. "
        "0 where the training had none.  [default: as the weights ask]",
    ),
    click.option(
        "--std",
        type=parse_values,
        metavar="R,G,B",
        help="Divided by afterwards. 1 where the training had none; 0.00392156863 (1/255) for an input from 0 to 255.  "
        "[default: as the weights ask]",
    ),
    click.option(
        "--resize",
        type=parse_pixels,
        metavar="N|HxW",
        help="N: pixels of a picture's shorter side before the crop. HxW: exactly that (--fit squash).  "
        "[default: as the weights ask, or --input-size]",
    ),
    click.option(
        "--crop",
        type=parse_pixels,
        metavar="N|HxW",
        help="Pixels taken from the middle of the resized picture: the network's input.  [default: --input-size]",
    ),
    click.option(
        "--fit",
        type=click.Choice(get_args(Fit)),
        help="crop: keep the proportions and cut off the edges. squash: resize to height and width whatever the proportions. "
        "letterbox: fit the whole picture into the input, on grey (114).  [default: crop; detectors: letterbox]",
    ),
    click.option("--channels", type=click.Choice(get_args(Channels)), help="Order of the input's channels.  [default: rgb]"),
    click.option(
        "--interpolation",
        type=click.Choice(get_args(Interpolation)),
        help="Pillow's, which average when they shrink (but for nearest), or opencv-bilinear: cv2.resize with INTER_LINEAR, "
        "bit for bit, which YOLO is trained with.  [default: as torchvision publishes; detectors: bilinear]",
    ),
)
_NAMES = ("mean", "std", "resize", "crop", "fit", "channels", "interpolation")


def preprocessing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, and pass it what they make as `preprocessing`."""

    @functools.wraps(command)
    def with_request(*args: Any, **options: Any) -> Any:
        request = PreprocessingRequest(**{name: options.pop(name) for name in _NAMES})
        return command(*args, preprocessing=request, **options)

    decorated: Callable[..., Any] = with_request
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated
