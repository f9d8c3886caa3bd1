"""Turns what went wrong into a message, a next step and an exit code."""

from __future__ import annotations

import errno
import io
import os
import shutil

import click

__all__ = ["INCOMPLETE", "report"]

INCOMPLETE = 3  # done, but something could not be run here
INTERRUPTED = 130


def report(error: BaseException, *, debug: bool) -> int:
    """Print the failure to stderr, with `debug` where it happened too, and return its exit code."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.ClickException):
        _show_usage(error)
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    from bundler import console  # noqa: PLC0415  rich is imported when there is something to say
    from bundler.errors import BundlerError, OutOfSpaceError  # noqa: PLC0415

    if debug:
        console.trace(error)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        console.error("interrupted; nothing half-written was left", "")
        return INTERRUPTED
    if isinstance(error, OSError) and _is_full_disk(error):
        error = OutOfSpaceError(str(error.filename or "the output folder"))
    if isinstance(error, BundlerError):
        console.error(error.message, error.next_step)
        return error.exit_code
    message = str(error).splitlines()[0] if str(error) else ""
    console.error(
        f"{type(error).__name__}: {message}",
        "This was not foreseen. `bundler --debug …` shows where it happened; please report it with that.",
    )
    return 1


def _show_usage(error: click.ClickException) -> None:
    """Print what click says about the command line; the arguments that it repeats are made visible."""
    from bundler import console  # noqa: PLC0415  as above

    text = io.StringIO()
    error.show(file=text)
    for line in text.getvalue().splitlines():
        console.plain(line)


def _is_full_disk(error: OSError) -> bool:
    """Say whether there was no room; `shutil.copytree` collects the errors of all files as text."""
    in_text = isinstance(error, shutil.Error) and os.strerror(errno.ENOSPC) in str(error)
    return in_text or error.errno in (errno.ENOSPC, errno.EDQUOT)
