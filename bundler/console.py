"""Terminal output: results go to stdout, everything else to stderr. No other module writes to the terminal.

Line feeds and control characters in text are escaped here (bundler/visible.py). Each call writes one line.

rich is imported in the functions that use it: without it, listing commands in a pipe take a third of the time.
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
from bundler.visible import visible

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Advance",
    "detail",
    "error",
    "heading",
    "json_result",
    "plain",
    "progress",
    "step",
    "success",
    "table",
    "text_result",
    "trace",
    "warn",
]


_BROKEN_PIPE = 128 + signal.SIGPIPE  # exit code


def heading(text: str) -> None:
    _say(text, style="bold")


def step(text: str) -> None:
    """Write which step begins."""
    _say(text, mark="▸ ", mark_style="bold cyan")


def detail(text: str) -> None:
    """Write a detail of the current step."""
    _say(text, mark="  ", style="dim")


def success(text: str) -> None:
    _say(text, mark="✓ ", mark_style="bold green")


def warn(text: str) -> None:
    _say(text, mark="! warning: ", mark_style="bold yellow")


def error(message: str, next_step: str) -> None:
    """Write an error message and the next step."""
    _say(message, mark="✗ error: ", mark_style="bold red")
    if next_step:
        _say(next_step, mark="  next: ", mark_style="bold")


def trace(error: BaseException) -> None:
    """Write the traceback of an exception."""
    for line in "".join(format_exception(error)).splitlines():
        plain(line)


def plain(text: str) -> None:
    """Write a line to stderr without a prefix."""
    sys.stderr.write(f"{visible(text)}\n")


def text_result(text: str) -> None:
    """Write a line of a result to stdout."""
    _write_result(f"{visible(text)}\n")


def json_result(value: Any) -> None:
    """Write a result to stdout as a JSON document; control characters are escaped as in JSON strings."""
    lines = json.dumps(value, indent=2, ensure_ascii=False).split("\n")  # json escapes line feeds inside strings
    _write_result("".join(f"{_json_escaped(line)}\n" for line in lines))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table to stdout: wrapped to the width of a terminal, or with one line per row in a pipe."""
    lines = [list(map(visible, line)) for line in (columns, *rows)]
    if not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
        _write_result("".join(f"{line}\n" for line in text))
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in lines[0]:
        grid.add_column(Text(name))
    for line in lines[1:]:
        grid.add_row(*map(Text, line))
    Console(highlight=False).print(grid)


class Advance(Protocol):
    def __call__(self, done: int, text: str | None = None, /) -> None: ...


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Advance]:
    """Show a progress bar while the block runs; the yielded function advances it and can change its description.

    If stderr is not a terminal, one line is written at the start.
    """
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console, description = _stderr(), visible(description)
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
        yield lambda done, text=None: bars.update(task, advance=done, description=None if text is None else visible(text))


def _write_result(text: str) -> None:
    """Write to stdout and flush, so that errors occur here.

    Raises:
        BrokenPipeError: the reader has closed the pipe.
        OutputError: it cannot be written, for example because the disk is full.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"the result cannot be written to standard output: {error.strerror}",
            next_step="Check the file or device that standard output is redirected to.",
        ) from error


def _say(text: str, *, mark: str = "", mark_style: str = "", style: str = "") -> None:
    """Write to stderr; after an error discard all later output, and end the command if the reader has closed the pipe."""
    from rich.text import Text  # noqa: PLC0415  in a str, rich would interpret markup and emoji codes

    try:
        _stderr().print(Text.assemble((mark, mark_style), (visible(text), style)))
    except (OSError, SystemExit) as error:  # rich raises SystemExit for a broken pipe
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  for the rest of the process
        if isinstance(error, SystemExit | BrokenPipeError):
            raise SystemExit(_BROKEN_PIPE) from error


def _json_escaped(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else "".join(f"\\u{unit:04x}" for unit in _utf16(c)) for c in line)


def _utf16(character: str) -> Iterator[int]:
    data = character.encode("utf-16-be", "surrogatepass")
    return (int.from_bytes(data[index : index + 2], "big") for index in range(0, len(data), 2))


def _stderr() -> Console:
    from rich.console import Console  # noqa: PLC0415

    return Console(stderr=True, highlight=False, soft_wrap=True)
