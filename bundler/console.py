"""The only writer to the terminal: results go to stdout, everything else to stderr.

rich is imported by what needs it: the listing commands answer in a pipe without it, in a third of the time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from traceback import format_exception
from typing import TYPE_CHECKING, Any, Protocol

from bundler.errors import OutputError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Advance",
    "detail",
    "error",
    "heading",
    "json_result",
    "progress",
    "step",
    "success",
    "table",
    "text_result",
    "trace",
    "warn",
]


_NOBODY_READS = 128 + signal.SIGPIPE


def heading(text: str) -> None:
    _say(text, style="bold")


def step(text: str) -> None:
    """Say what is being done now."""
    _say(text, mark="▸ ", mark_style="bold cyan")


def detail(text: str) -> None:
    """Say a fact about the step just announced."""
    _say(text, mark="  ", style="dim")


def success(text: str) -> None:
    _say(text, mark="✓ ", mark_style="bold green")


def warn(text: str) -> None:
    _say(text, mark="! warning: ", mark_style="bold yellow")


def error(message: str, next_step: str) -> None:
    """Say what failed and what to do next."""
    _say(message, mark="✗ error: ", mark_style="bold red")
    if next_step:
        _say(next_step, mark="  next: ", mark_style="bold")


def trace(error: BaseException) -> None:
    """Say where a failure happened."""
    sys.stderr.write("".join(format_exception(error)))


def text_result(text: str) -> None:
    """Write a result for people to stdout."""
    _write_result(f"{text}\n")


def json_result(value: Any) -> None:
    """Write a result for machines to stdout: one JSON document."""
    _write_result(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table to stdout: folded to the width of a terminal, and one line a row in a pipe."""
    lines = [list(columns), *(list(row) for row in rows)]
    if not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
        text_result("\n".join(text))
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    grid = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for line in lines[1:]:
        grid.add_row(*map(Text, line))
    Console(highlight=False).print(grid)


class Advance(Protocol):
    def __call__(self, done: int, text: str | None = None, /) -> None: ...


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Advance]:
    """Show a bar with the time left while the block runs; call what is yielded with how much more is done, and a new text.

    Where stderr is no terminal, a line at the start is enough.
    """
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
        yield lambda _done, _text=None: None
        return
    columns = (
        TextColumn("  {task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(description, total=total)
        yield lambda done, text=None: bars.update(task, advance=done, description=text)


def _write_result(text: str) -> None:
    """Write to stdout at once, so that a failure is seen here.

    Raises:
        BrokenPipeError: nobody reads it any more.
        OutputError: it cannot be written, because a disk is full for instance.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"the result cannot be written to standard output: {error.strerror}", next_step="See where it is redirected to."
        ) from error


def _say(text: str, *, mark: str = "", mark_style: str = "", style: str = "") -> None:
    """Write to stderr. Where nobody reads that any more the command ends, once, and is silent from then on."""
    from rich.text import Text  # noqa: PLC0415  a plain string would be searched for markup and emoji

    try:
        _stderr().print(Text.assemble((mark, mark_style), (text, style)))
    except (OSError, SystemExit) as error:  # rich makes a SystemExit of a broken pipe
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  for the rest of the process
        if isinstance(error, SystemExit | BrokenPipeError):
            raise SystemExit(_NOBODY_READS) from error


def _stderr() -> Console:
    from rich.console import Console  # noqa: PLC0415

    return Console(stderr=True, highlight=False, soft_wrap=True)
