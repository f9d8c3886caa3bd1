"""Putting a finished bundle in its place: written beside, then renamed, so that a good one is never half replaced."""

from __future__ import annotations

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

    If the last move fails, the earlier bundle is put back.
    """
    os.chmod(bundle, 0o755)  # noqa: PTH101, S103  mkdtemp made it private
    aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-old-", dir=directory.parent))
    earlier = aside / directory.name
    try:
        if directory.exists():
            directory.rename(earlier)
        try:
            bundle.rename(directory)
        except BaseException:
            if earlier.exists():
                earlier.rename(directory)
            raise
        if archive is not None and archive_path is not None:
            archive.replace(archive_path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
