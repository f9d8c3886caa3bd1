"""Unpack the untrusted `.tar.gz` of a bundle: regular files below one folder, with limits on their number and size."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bundler.errors import BundleDamagedError
from bundler.packaging.plain_tree import LARGEST_BUNDLE, LARGEST_FILE, MOST_ENTRIES, NAME
from bundler.plain_files import open_regular

__all__ = ["is_archive", "unpacked"]

_BLOCK = 512  # bytes; a header has one block, and contents are padded to whole blocks
_CHUNK = 2**20
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
}


def is_archive(path: Path) -> bool:
    """Return whether a path is a file with the suffix of a bundle's archive."""
    return path.name.endswith((".tar.gz", ".tgz")) and path.is_file()


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Unpack an archive into a temporary directory and yield the bundle's folder in it; it is removed when the block ends.

    Raises:
        BundleDamagedError: it is not a `.tar.gz` as `bundler bundle` writes it, contains anything but regular files below one
            folder, or exceeds the limits of a bundle.
        OSError: the files cannot be written.
    """
    with TemporaryDirectory(prefix="edge-bundler-archive-") as temporary:
        try:
            with open_regular(path, follow_links=True) as file, gzip.GzipFile(fileobj=file, mode="rb") as packed:
                root = _unpack(packed, Path(temporary))
        except (ValueError, EOFError, gzip.BadGzipFile, zlib.error, tarfile.HeaderError) as error:
            raise BundleDamagedError(
                f"{path} is not the archive of a bundle: {error}", next_step="Copy it again from its source."
            ) from error
        yield root


def _unpack(packed: gzip.GzipFile, folder: Path) -> Path:
    """Write the files into `folder`, and return the one folder in it.

    Only POSIX ustar headers are read, as bundler/packaging/archive.py writes them: pax and GNU extensions have no size limit.
    """
    roots: set[str] = set()
    left = LARGEST_BUNDLE
    for count, header in enumerate(iter(lambda: packed.read(_BLOCK), bytes(_BLOCK))):
        if count >= MOST_ENTRIES:
            raise ValueError(f"it contains more than {MOST_ENTRIES} files")
        entry = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        parts = entry.name.rstrip("/").split("/")
        if not all(NAME.fullmatch(part) for part in parts) or len(parts) > 3:
            raise ValueError(f"{entry.name!r} is not a path of a bundle")
        roots.add(parts[0])
        if entry.isdir():
            continue
        if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise ValueError(
                f"{entry.name} is {_KINDS.get(entry.type, f'an entry of type {entry.type!r}')}, not a regular file"
            )
        if len(parts) == 1 or len(roots) > 1:
            raise ValueError(f"{entry.name} is not in the one folder of a bundle")
        if not 0 <= entry.size <= min(LARGEST_FILE, left):
            raise ValueError(f"{entry.name} is too large ({entry.size:,} bytes)")
        left -= entry.size
        _write(packed, folder.joinpath(*parts), entry.size)
    if len(roots) != 1:
        raise ValueError("it contains no folder")
    root = folder / roots.pop()
    if not root.is_dir():
        raise ValueError("it contains no file")
    return root


def _write(packed: gzip.GzipFile, path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = path.open("xb")
    except OSError as error:  # it exists already, or its folder is a file
        raise ValueError(f"{path.name} occurs twice") from error
    with file:
        for wanted in (*[_CHUNK] * (size // _CHUNK), size % _CHUNK):
            chunk = packed.read(wanted)
            if len(chunk) != wanted:
                raise EOFError("it is truncated")
            file.write(chunk)
    packed.read(-size % _BLOCK)
