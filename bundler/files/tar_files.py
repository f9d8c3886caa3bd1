"""Reproducible tar files: the bytes depend on the names, modes and contents of the members, and on nothing else."""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from gzip import GzipFile
from io import BytesIO
from pathlib import Path
from typing import IO, Literal

__all__ = ["Member", "write_tar"]

_FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT}


@dataclass(frozen=True, kw_only=True)
class Member:
    """One member: a directory (mode with S_IFDIR), a symbolic link (`link`), or a file with the given bytes.

    If `source` is a path, its content is copied when the member is written.
    """

    name: str
    mode: int
    link: str = ""
    source: bytes | Path = b""


def write_tar(file: IO[bytes] | GzipFile, members: Iterable[Member], *, tar_format: Literal["ustar", "gnu"]) -> None:
    """Write `members` in the given order, owned by root (0:0) and with modification time 0.

    Args:
        file: open for writing; it stays open.
        members: each name once.
        tar_format: `ustar` (POSIX.1-1988, names up to 256 bytes), or `gnu` (names of any length).

    Raises:
        OSError: a source cannot be read, or the file cannot be written.
        ValueError: a name is too long for ustar.
    """
    with tarfile.open(fileobj=file, mode="w", format=_FORMATS[tar_format]) as tar:
        for member in members:
            _add(tar, member)


def _add(tar: tarfile.TarFile, member: Member) -> None:
    entry = tarfile.TarInfo(member.name)
    entry.mode = stat.S_IMODE(member.mode)
    if stat.S_ISDIR(member.mode):
        entry.type = tarfile.DIRTYPE
        tar.addfile(entry)
    elif member.link:
        entry.type, entry.linkname = tarfile.SYMTYPE, member.link
        tar.addfile(entry)
    elif isinstance(member.source, bytes):
        entry.size = len(member.source)
        tar.addfile(entry, BytesIO(member.source))
    else:
        with member.source.open("rb") as content:
            entry.size = member.source.stat().st_size
            tar.addfile(entry, content)
