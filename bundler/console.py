"""The only writer to the terminal: results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["detail", "error", "heading", "json_result", "progress", "step", "success", "table", "text_result", "warn"]


_PIPE_WIDTH = 10_000  # characters: a table takes what it needs of it


def _stderr() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def _stdout() -> Console:
    return Console(highlight=False, soft_wrap=True)


def heading(text: str) -> None:
    _stderr().print(f"[bold]{escape(text)}[/]")


def step(text: str) -> None:
    """Say what is being done now."""
    _stderr().print(f"[bold cyan]▸[/] {escape(text)}")


def detail(text: str) -> None:
    """Say a fact about the step just announced."""
    _stderr().print(f"  [dim]{escape(text)}[/]")


def success(text: str) -> None:
    _stderr().print(f"[bold green]✓[/] {escape(text)}")


def warn(text: str) -> None:
    _stderr().print(f"[bold yellow]! warning:[/] {escape(text)}")


def error(message: str, next_step: str) -> None:
    """Say what failed and what to do next."""
    console = _stderr()
    console.print(f"[bold red]✗ error:[/] {escape(message)}")
    if next_step:
        console.print(f"  [bold]next:[/] {escape(next_step)}")


def text_result(text: str) -> None:
    """Write a result for people to stdout."""
    _stdout().print(escape(text))


def json_result(value: Any) -> None:
    """Write a result for machines to stdout: one JSON document."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> None:
    """Write a table to stdout; in a pipe it is never cut off."""
    console = _stdout()
    grid = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        grid.add_row(*(escape(cell) for cell in row))
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    console.print(grid)


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar with the time left while the block runs; call what is yielded with how much more is done.

    Where stderr is no terminal, a line at the start and one at the end are enough.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn  # noqa: PLC0415

    console = _stderr()
    if not console.is_terminal:
        console.print(f"  [dim]{escape(description)} …[/]")
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
