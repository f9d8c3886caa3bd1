"""An option that was renamed: its old name is refused with the new one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

__all__ = ["renamed_option"]


def renamed_option(old: str, new: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a hidden option that refuses the old name and states the new one."""

    def refuse(_context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
        if value is not None:
            raise click.UsageError(f"{old} was renamed to {new}.")

    name = f"renamed_{old.removeprefix('--').replace('-', '_')}"  # of its own: the new option may keep the old parameter's name
    return click.option(old, name, hidden=True, expose_value=False, callback=refuse)
