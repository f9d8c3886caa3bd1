"""The options of preprocessing, for weights that were trained with other preprocessing than the published weights."""

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
        help="Mean of each channel, subtracted from pixel / 255, in the order of --channels; one number for all three. "
        "0 if the training subtracted none.  [default: as published for the weights]",
    ),
    click.option(
        "--std",
        type=parse_values,
        metavar="R,G,B",
        help="Standard deviation of each channel, divides afterwards. 1 if the training divided by none; "
        "0.00392156863 (1/255) for an input from 0 to 255.  [default: as published for the weights]",
    ),
    click.option(
        "--resize",
        type=parse_pixels,
        metavar="N|HxW",
        help="N: the shorter side in pixels before the crop. HxW: height and width (--fit squash).  "
        "[default: as published for the weights, or --input-size]",
    ),
    click.option(
        "--crop",
        type=parse_pixels,
        metavar="N|HxW",
        help="Size in pixels of the centre crop, which is the network's input.  [default: --input-size]",
    ),
    click.option(
        "--fit",
        type=click.Choice(get_args(Fit)),
        help="crop: keep the aspect ratio and crop the centre. squash: resize to height and width, ignoring the aspect ratio. "
        "letterbox: keep the aspect ratio and pad with grey (114).  [default: crop; detectors: letterbox]",
    ),
    click.option("--channels", type=click.Choice(get_args(Channels)), help="Channel order of the input.  [default: rgb]"),
    click.option(
        "--interpolation",
        type=click.Choice(get_args(Interpolation)),
        help="A filter of Pillow (antialiased, except nearest), or opencv-bilinear: bit-exact with cv2.resize, INTER_LINEAR, "
        "which YOLO is trained with.  [default: as published by torchvision; detectors: bilinear]",
    ),
)
_NAMES = ("mean", "std", "resize", "crop", "fit", "channels", "interpolation")


def preprocessing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as one `preprocessing` request."""

    @functools.wraps(command)
    def with_request(*args: Any, **options: Any) -> Any:
        request = PreprocessingRequest(**{name: options.pop(name) for name in _NAMES})
        return command(*args, preprocessing=request, **options)

    decorated: Callable[..., Any] = with_request
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated
