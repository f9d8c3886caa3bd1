"""Turns what went wrong into a message, a next step and an exit code."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal

import click

from bundler.errors import BundlerError, OutOfSpaceError, OutputError
from bundler.interruption import InterruptedBySignal

__all__ = ["INCOMPLETE", "NOBODY_READS", "report", "say_given_up"]

INCOMPLETE = 3  # done, but something could not be run here
INTERRUPTED = 128 + signal.SIGINT
NOBODY_READS = 128 + signal.SIGPIPE


def report(error: BaseException, *, debug: bool) -> int:
    """Print the failure to stderr, with `debug` where it happened too, and return its exit code."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.ClickException):
        _show_usage(error)
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        return NOBODY_READS
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    from bundler import console  # noqa: PLC0415  rich is imported when there is something to say

    if debug:
        console.trace(error)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        console.error("interrupted; nothing half-written was left", "")
        return _signalled(error) or INTERRUPTED
    if isinstance(error, OSError):
        error = _named(error)
    if isinstance(error, BundlerError):
        console.error(error.message, error.next_step)
        return _signalled(error) or error.exit_code  # clean-up after a signal can fail too
    message = str(error).splitlines()[0] if str(error) else ""
    console.error(
        f"{type(error).__name__}: {message}",
        "This was not foreseen. `bundler --debug …` shows where it happened; please report it with that.",
    )
    return 1


def say_given_up() -> None:
    """Say that a command which was told to end does so without having cleaned up."""
    from bundler import console  # noqa: PLC0415  as above

    console.error("the clean-up did not end in time", "`bundler doctor --clean` removes what is left.")


def _signalled(error: BaseException) -> int | None:
    """Return the exit code of the signal from which everything else followed, if there was one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InterruptedBySignal):
            return cause.exit_code
        cause = cause.__cause__ or cause.__context__
    return None


def _named(error: OSError) -> Exception:
    """Return an OutputError that names the file, where the system said which one it could not read or write."""
    if _is_full_disk(error):
        return OutOfSpaceError(str(error.filename or "the output folder"))
    if str(error.strerror).startswith("No usable temporary directory"):
        places = str(error.strerror).partition("[")[2].rstrip("]").replace("'", "")
        return OutputError(
            f"no folder for temporary files can be written to: {places}", next_step="Set TMPDIR to one that can."
        )
    if error.filename is None:
        return error
    return OutputError(
        f"{os.fsdecode(error.filename2 or error.filename)}: {error.strerror}",
        next_step="See that it exists, that it may be read and written, and that its disk works.",
    )


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
