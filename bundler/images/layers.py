"""Layers of an image: uncompressed tar files, with the digests by which the image's configuration names them (`diff_id`)."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bundler.files.atomic_write import atomic_write
from bundler.files.sha256 import sha256_of
from bundler.files.tar_files import Member, write_tar

__all__ = ["Layer", "file_members", "read_layer", "with_directories", "write_layer"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A tar file on disk; `diff_id` is `sha256:HEX` of its bytes, `size_bytes` their number."""

    path: Path
    diff_id: str
    size_bytes: int


def file_members(folder: Path, files: Sequence[str], *, below: str) -> Iterator[Member]:
    """Yield files of a folder as members of the directory `below`, with mode 0755 for programs and 0644 for others."""
    for file in files:
        path = folder / file
        mode = 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
        yield Member(name=f"{below}/{file}", mode=mode, source=path)


def write_layer(destination: Path, members: Iterable[Member]) -> Layer:
    """Write `members` as a layer, with their parent directories, sorted by name, owned by root, with modification time 0.

    Raises:
        OutOfSpaceError: the disk is full; `destination` is as it was.
    """
    with atomic_write(destination) as partial, partial.open("wb") as file:
        write_tar(file, with_directories(members), tar_format="gnu")
    return read_layer(destination)


def with_directories(members: Iterable[Member]) -> list[Member]:
    """Return the members with their parent directories (0755 unless given), sorted by name; the last one of a name counts."""
    entries = {member.name: member for member in members}
    for name in list(entries):
        for parent in PurePosixPath(name).parents:
            if parent.name:
                entries.setdefault(str(parent), Member(name=str(parent), mode=stat.S_IFDIR | 0o755))
    return [entries[name] for name in sorted(entries)]


def read_layer(path: Path) -> Layer:
    """Return the layer in a tar file."""
    return Layer(path=path, diff_id=f"sha256:{sha256_of(path)}", size_bytes=path.stat().st_size)
