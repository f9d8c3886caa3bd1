"""Turn an exception into a message, a next step and an exit code."""

from __future__ import annotations

import errno
import io
import os
import shutil

import click

from bundler.cli.exit_codes import INCOMPLETE, INTERRUPTED, NOBODY_READS
from bundler.errors import BundlerError, OutOfSpaceError, OutputError
from bundler.interruption import InterruptedBySignal

__all__ = ["INCOMPLETE", "report", "say_given_up"]


def report(error: BaseException, *, debug: bool) -> int:
    """Print the failure to stderr, with its traceback if `debug`, and return its exit code."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.ClickException):
        _show_usage(error)
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        return NOBODY_READS
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    from bundler import console  # noqa: PLC0415  rich is imported only for a message

    if debug:
        console.trace(error)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        console.error("interrupted; incomplete files were removed", "")
        return _signalled(error) or INTERRUPTED
    if isinstance(error, OSError):
        error = _named(error)
    if isinstance(error, BundlerError):
        console.error(error.message, error.next_step)
        return _signalled(error) or error.exit_code  # clean-up after a signal can fail too
    message = str(error).splitlines()[0] if str(error) else ""
    console.error(
        f"{type(error).__name__}: {message}",
        "This error was not foreseen: it is a defect of edge-bundler. `bundler --debug …` prints the traceback.",
    )
    return 1


def say_given_up() -> None:
    """Report that a command was ended by a second signal, or a time limit, before its clean-up was complete."""
    from bundler import console  # noqa: PLC0415  as above

    console.error("the clean-up did not finish in time", "Run `bundler doctor --clean` to remove what is left.")


def _signalled(error: BaseException) -> int | None:
    """Return the exit code of the signal that caused the failure, if a signal did."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InterruptedBySignal):
            return cause.exit_code
        cause = cause.__cause__ or cause.__context__
    return None


def _named(error: OSError) -> Exception:
    """Return an OutputError that names the file, if the operating system named it."""
    if _is_full_disk(error):
        return OutOfSpaceError(str(error.filename or "the output directory"))
    if str(error.strerror).startswith("No usable temporary directory"):
        places = str(error.strerror).partition("[")[2].rstrip("]").replace("'", "")
        return OutputError(
            f"no directory for temporary files is writable: {places}", next_step="Set TMPDIR to a writable directory."
        )
    if error.filename is None:
        return error
    return OutputError(
        f"{os.fsdecode(error.filename2 or error.filename)}: {error.strerror}",
        next_step="Check that it exists, its permissions, and that its disk works.",
    )


def _show_usage(error: click.ClickException) -> None:
    """Print click's usage error; control characters in the arguments that it quotes are escaped."""
    from bundler import console  # noqa: PLC0415  as above

    text = io.StringIO()
    error.show(file=text)
    for line in text.getvalue().splitlines():
        console.plain(line)


def _is_full_disk(error: OSError) -> bool:
    """Return whether the disk was full; `shutil.copytree` collects the errors of all files as text."""
    in_text = isinstance(error, shutil.Error) and os.strerror(errno.ENOSPC) in str(error)
    return in_text or error.errno in (errno.ENOSPC, errno.EDQUOT)
