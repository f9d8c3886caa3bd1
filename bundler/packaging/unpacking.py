"""Unpacking of a bundle's `.tar.gz` that somebody else may have made: plain files below one folder, and bounded."""

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

_BLOCK = 512  # bytes; headers have one, and contents are filled up to whole ones
_CHUNK = 2**20
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
}


def is_archive(path: Path) -> bool:
    """Say whether a path looks like a bundle's archive: by its name, if it is a file at all."""
    return path.name.endswith((".tar.gz", ".tgz")) and path.is_file()


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Give the folder of the bundle in an archive, in a temporary place; it is gone when the block ends.

    Raises:
        BundleDamagedError: it is not a `.tar.gz` as `bundler bundle` writes them, or holds something else than files with plain
            names below one folder, or more than a bundle may hold.
        OSError: there is no room for its files.
    """
    with TemporaryDirectory(prefix="edge-bundler-archive-") as temporary:
        try:
            with open_regular(path, follow_links=True) as file, gzip.GzipFile(fileobj=file, mode="rb") as packed:
                root = _unpack(packed, Path(temporary))
        except (ValueError, EOFError, gzip.BadGzipFile, zlib.error, tarfile.HeaderError) as error:
            raise BundleDamagedError(
                f"{path} is not the archive of a bundle: {error}", next_step="Copy it again from where it was built."
            ) from error
        yield root


def _unpack(packed: gzip.GzipFile, folder: Path) -> Path:
    """Write the files into `folder`, and return the one folder in it.

    Only headers as this program writes them are read (POSIX ustar): pax and GNU extensions can be of any length.
    """
    roots: set[str] = set()
    left = LARGEST_BUNDLE
    for count, header in enumerate(iter(lambda: packed.read(_BLOCK), bytes(_BLOCK))):
        if count >= MOST_ENTRIES:
            raise ValueError(f"it holds more than {MOST_ENTRIES} files")
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
            raise ValueError(f"{entry.name} does not lie in the one folder of a bundle")
        if not 0 <= entry.size <= min(LARGEST_FILE, left):
            raise ValueError(f"{entry.name} is too large ({entry.size:,} bytes)")
        left -= entry.size
        _write(packed, folder.joinpath(*parts), entry.size)
    if len(roots) != 1:
        raise ValueError("it holds no folder")
    root = folder / roots.pop()
    if not root.is_dir():
        raise ValueError("it holds no file")
    return root


def _write(packed: gzip.GzipFile, path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = path.open("xb")
    except OSError as error:  # it is there already, or lies in what is a file
        raise ValueError(f"{path.name} occurs twice") from error
    with file:
        for wanted in (*[_CHUNK] * (size // _CHUNK), size % _CHUNK):
            chunk = packed.read(wanted)
            if len(chunk) != wanted:
                raise EOFError("it is cut off")
            file.write(chunk)
    packed.read(-size % _BLOCK)
