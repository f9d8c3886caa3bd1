"""The option `--output`: the directory that `bundle` writes to, and that `verify` and `doctor` search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = ["output_option"]


def output_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option with its help text."""
    directory = click.Path(path_type=Path)
    return click.option("--output", type=directory, default=Path("dist"), show_default=True, metavar="DIR", help=text)
