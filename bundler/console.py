"""The only writer to the terminal: results go to stdout, everything else to stderr.

rich is imported by what needs it: the listing commands answer in a pipe without it, in a third of the time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["detail", "error", "heading", "json_result", "progress", "step", "success", "table", "text_result", "warn"]


def heading(text: str) -> None:
    _say("[bold]", text)


def step(text: str) -> None:
    """Say what is being done now."""
    _say("[bold cyan]▸[/] ", text)


def detail(text: str) -> None:
    """Say a fact about the step just announced."""
    _say("  [dim]", text)


def success(text: str) -> None:
    _say("[bold green]✓[/] ", text)


def warn(text: str) -> None:
    _say("[bold yellow]! warning:[/] ", text)


def error(message: str, next_step: str) -> None:
    """Say what failed and what to do next."""
    _say("[bold red]✗ error:[/] ", message)
    if next_step:
        _say("  [bold]next:[/] ", next_step)


def text_result(text: str) -> None:
    """Write a result for people to stdout."""
    sys.stdout.write(f"{text}\n")


def json_result(value: Any) -> None:
    """Write a result for machines to stdout: one JSON document."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table to stdout: folded to the width of a terminal, and one line a row in a pipe."""
    lines = [list(columns), *(list(row) for row in rows)]
    if not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            text_result("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    grid = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for line in lines[1:]:
        grid.add_row(*map(escape, line))
    Console(highlight=False).print(grid)


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar with the time left while the block runs; call what is yielded with how much more is done.

    Where stderr is no terminal, a line at the start is enough.
    """
    from rich.markup import escape  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = _stderr()
    if not console.is_terminal:
        detail(f"{description} …")
        yield lambda _done: None
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(escape(description), total=total)
        yield lambda done: bars.advance(task, done)


def _say(mark: str, text: str) -> None:
    from rich.markup import escape  # noqa: PLC0415

    _stderr().print(mark + escape(text))


def _stderr() -> Console:
    from rich.console import Console  # noqa: PLC0415

    return Console(stderr=True, highlight=False, soft_wrap=True)
