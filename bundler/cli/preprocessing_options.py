"""Preprocessing options, for weights that were trained with other preprocessing than the published ones."""

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
        help="Mean of pixels / 255, subtracted; in the order of the channels, or one number for all. "
        "0 if the training had none.  [default: of the published weights]",
    ),
    click.option(
        "--std",
        type=parse_values,
        metavar="R,G,B",
        help="Standard deviation of pixels / 255, divided by. 1 if the training had none; "
        "0.00392156863 (1/255) for inputs in 0..255.  [default: of the published weights]",
    ),
    click.option(
        "--resize",
        type=parse_pixels,
        metavar="N|HxW",
        help="N: length of the shorter side in pixels before the crop. HxW: exactly this size (--fit squash).  "
        "[default: of the published weights, or --input-size]",
    ),
    click.option(
        "--crop",
        type=parse_pixels,
        metavar="N|HxW",
        help="Size of the centre crop in pixels: the network's input.  [default: --input-size]",
    ),
    click.option(
        "--fit",
        type=click.Choice(get_args(Fit)),
        help="crop: keep the aspect ratio and crop the edges. squash: resize to height and width. "
        "letterbox: keep the aspect ratio and pad with grey (114).  [default: crop; detectors: letterbox]",
    ),
    click.option("--channels", type=click.Choice(get_args(Channels)), help="Order of the input's channels.  [default: rgb]"),
    click.option(
        "--interpolation",
        type=click.Choice(get_args(Interpolation)),
        help="Pillow's filters, which are antialiased except for nearest; or opencv-bilinear: bit-exact cv2.resize with "
        "INTER_LINEAR, as in the training of YOLO.  [default: of the published weights; detectors: bilinear]",
    ),
)
_NAMES = ("mean", "std", "resize", "crop", "fit", "channels", "interpolation")


def preprocessing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which receives a PreprocessingRequest as `preprocessing`."""

    @functools.wraps(command)
    def with_request(*args: Any, **options: Any) -> Any:
        request = PreprocessingRequest(**{name: options.pop(name) for name in _NAMES})
        return command(*args, preprocessing=request, **options)

    decorated: Callable[..., Any] = with_request
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated
