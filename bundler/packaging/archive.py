"""The `.tar.gz` of a bundle: the same bytes for the same files."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

from bundler.files.tar_files import Member, write_tar

__all__ = ["write_archive"]

_LEVEL = 6  # weights hardly compress further, and 9 takes several times as long


def write_archive(folder: Path, archive: Path, *, root: str) -> None:
    """Write the files of `folder` as `root/…`, sorted, owned by root, with modification time 0, as gzip without a name or date.

    Raises:
        OSError: a file cannot be read, or the archive cannot be written.
    """
    with (
        archive.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=raw, mtime=0) as compressed,
    ):
        write_tar(compressed, _members(folder, root), tar_format="ustar")


def _members(folder: Path, root: str) -> Iterator[Member]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield Member(name=f"{root}/{path.relative_to(folder).as_posix()}", mode=0o644, source=path)
