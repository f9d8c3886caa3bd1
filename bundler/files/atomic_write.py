"""Atomic writes: a file or directory appears under its name complete, or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bundler.errors import OutOfSpaceError
from bundler.interruption import defer_signals

__all__ = ["DISK_FULL", "atomic_write", "sync_directory", "sync_files"]

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def atomic_write(destination: Path, *, prefix: str | None = None) -> Iterator[Path]:
    """Yield a path on the file system of `destination`; what is written there is renamed to `destination` at the end.

    The path is in a temporary directory beside `destination` whose name begins with `prefix`. If the block raises, the
    temporary directory is removed and `destination` stays as it was. A directory that another process has put at
    `destination` meanwhile stays as it is.

    Raises:
        OutOfSpaceError: the disk is full.
    """
    directory = destination.with_name(f"{prefix or f'.{destination.name}.'}{secrets.token_hex(4)}")
    partial = directory / destination.name
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700)
        yield partial
        if not (partial.is_dir() and destination.is_dir()):
            partial.replace(destination)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise OutOfSpaceError(str(destination)) from error
        raise
    finally:
        with defer_signals():
            shutil.rmtree(directory, ignore_errors=True)


def sync_files(path: Path) -> None:
    """Wait until a file, or every file below a directory, is on the disk."""
    for file in path.rglob("*") if path.is_dir() else (path,):
        if file.is_file():
            with file.open("rb") as content:
                os.fsync(content.fileno())


def sync_directory(directory: Path) -> None:
    """Wait until the names in a directory are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
