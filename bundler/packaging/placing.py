"""Putting a finished bundle in its place: written beside, then renamed, so that a good one is never half replaced."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bundler.errors import OutputError

__all__ = ["place", "workshop"]


@contextmanager
def workshop(directory: Path) -> Iterator[Path]:
    """Give a temporary folder on the file system of `directory`, beside it; it is gone when the block ends, however it ends.

    Raises:
        OutputError: the place cannot be written to.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    except OSError as error:
        raise OutputError(
            f"{directory.parent} cannot be written to: {error.strerror}", next_step="Give another place with --output DIR."
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def place(bundle: Path, directory: Path, *, archive: Path | None = None, archive_path: Path | None = None) -> None:
    """Move a finished folder, and its archive, into place; an earlier bundle there is replaced as a whole.

    If a move fails or is interrupted, the earlier bundle is put back.

    Raises:
        OutputError: something in the way cannot be moved or replaced.
    """
    try:
        os.chmod(bundle, 0o755)  # noqa: PTH101, S103  mkdtemp made it private
        aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-old-", dir=directory.parent))
        _swap(bundle, directory, aside / directory.name, archive, archive_path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OutputError(
            f"{error.filename2 or error.filename or directory} cannot be replaced: {error.strerror}",
            next_step="Move away what is there, or give another place with --output DIR.",
        ) from error
    shutil.rmtree(aside, ignore_errors=True)


def _swap(bundle: Path, directory: Path, earlier: Path, archive: Path | None, archive_path: Path | None) -> None:
    try:
        if directory.exists():
            directory.rename(earlier)
        bundle.rename(directory)
        if archive is not None and archive_path is not None:
            archive.replace(archive_path)
    except BaseException:
        if not bundle.exists() and directory.exists():
            directory.rename(bundle)
        if earlier.exists():
            earlier.rename(directory)
        earlier.parent.rmdir()
        raise
