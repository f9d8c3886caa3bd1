"""Parsers of option values: sizes in pixels, and values for each colour channel."""

from __future__ import annotations

import re

import click

from bundler.data.preprocessing import Pixels

__all__ = ["parse_pixels", "parse_values"]

_SIZE = re.compile(r"([0-9]{1,6})(?:[xX]([0-9]{1,6}))?")


def parse_pixels(text: str) -> Pixels:
    """Parse `N`, or `HxW` (height and width).

    Raises:
        click.BadParameter: `text` has neither form.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise click.BadParameter(f"{text!r} is not a size in pixels: N or HxW (height and width), such as 224 or 224x160.")
    height, width = found.groups()
    return int(height) if width is None else (int(height), int(width))


def parse_values(text: str) -> tuple[float, float, float]:
    """Parse one number for all channels, or three separated by commas.

    Raises:
        click.BadParameter: `text` has neither form.
    """
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3):
        raise click.BadParameter(f"{text!r} is not one number or three separated by commas, such as 0.5 or 0.485,0.456,0.406.")
    first, second, third = numbers if len(numbers) == 3 else numbers * 3
    return first, second, third
