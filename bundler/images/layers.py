"""Layers of an image: tar files whose bytes depend on the names, modes and contents in them, and on nothing else."""

from __future__ import annotations

import errno
import hashlib
import secrets
import shutil
import stat
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO

from bundler.errors import OutOfSpaceError
from bundler.interruption import shielded

__all__ = ["Layer", "Member", "file_members", "read_layer", "write_layer", "write_members", "writing"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A tar file on disk; `diff_id` is `sha256:…` of its bytes, `size_bytes` their number."""

    path: Path
    diff_id: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Member:
    """One entry: a folder (mode with S_IFDIR), a symbolic link (`link`), or a file with the bytes or the copy of `source`."""

    name: str
    mode: int
    link: str = ""
    source: bytes | Path = b""


def file_members(folder: Path, files: Sequence[str], *, below: str) -> Iterator[Member]:
    """Yield the given files of a folder, to appear under `below`; modes are 0755 for programs and 0644 for the rest."""
    for file in files:
        path = folder / file
        mode = 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
        yield Member(name=f"{below}/{file}", mode=mode, source=path)


def write_layer(destination: Path, members: Iterable[Member]) -> Layer:
    """Write `members` as a layer, with their parent folders, sorted by name, owned by root, at time zero.

    Raises:
        OutOfSpaceError: the disk is full; nothing is left at `destination`.
    """
    with writing(destination) as beside, beside.open("wb") as file:
        write_members(file, members)
    return read_layer(destination)


def write_members(file: IO[bytes], members: Iterable[Member]) -> None:
    """Write a tar of `members`, with their parent folders, sorted by name, owned by root, at time zero."""
    entries = {member.name: member for member in members}
    for name in list(entries):
        for parent in PurePosixPath(name).parents:
            if parent.name:
                entries.setdefault(str(parent), Member(name=str(parent), mode=stat.S_IFDIR | 0o755))
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in sorted(entries):
            _add(tar, entries[name])


def read_layer(path: Path) -> Layer:
    """Return the layer that a tar file is."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Layer(path=path, diff_id=f"sha256:{digest}", size_bytes=path.stat().st_size)


@contextmanager
def writing(destination: Path, *, prefix: str | None = None) -> Iterator[Path]:
    """Yield a path beside `destination` for a file or folder that takes its place when the block ends well.

    Until then it is in a temporary folder whose name begins with `prefix`. A folder that another process finished meanwhile
    stays as it is.

    Raises:
        OutOfSpaceError: the disk is full.
    """
    folder = destination.with_name(f"{prefix or f'.{destination.name}.'}{secrets.token_hex(4)}")
    beside = folder / destination.name
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
        yield beside
        if not (beside.is_dir() and destination.is_dir()):
            beside.replace(destination)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpaceError(str(destination)) from error
        raise
    finally:
        with shielded():
            shutil.rmtree(folder, ignore_errors=True)


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
        entry.size = member.source.stat().st_size
        with member.source.open("rb") as content:
            tar.addfile(entry, content)
