"""Types of options that click does not have: sizes in pixels, and a number for each colour channel."""

from __future__ import annotations

import re

import click

from bundler.data.preprocessing import Pixels

__all__ = ["parse_pixels", "parse_values"]

_SIZE = re.compile(r"([0-9]{1,6})(?:[xX]([0-9]{1,6}))?")


def parse_pixels(text: str) -> Pixels:
    """Read `N`, or `HxW` for height and width.

    Raises:
        click.BadParameter: it is neither.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise click.BadParameter(f"{text!r} is neither N nor HxW (height and width in pixels), as in 224 or 224x160.")
    height, width = found.groups()
    return int(height) if width is None else (int(height), int(width))


def parse_values(text: str) -> tuple[float, float, float]:
    """Read one number for all three channels, or three with commas between.

    Raises:
        click.BadParameter: it is neither.
    """
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3):
        raise click.BadParameter(f"{text!r} is neither one number nor three with commas, as in 0.5 or 0.485,0.456,0.406.")
    first, second, third = numbers if len(numbers) == 3 else numbers * 3
    return first, second, third
