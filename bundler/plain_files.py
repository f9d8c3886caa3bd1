"""Read untrusted paths: regular files only, up to a size limit; FIFOs and devices are never opened."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

__all__ = ["kind_of", "open_regular", "read_regular"]

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a regular file",
}


def kind_of(mode: int) -> str:
    """Return the file type of an `st_mode` in words, with an article."""
    return _KINDS.get(stat.S_IFMT(mode), "a file of an unknown kind")


def open_regular(name: str | Path, *, folder: int | None = None, follow_links: bool = False) -> BinaryIO:
    """Open a regular file for reading. Opening anything else could block for ever, or have effects on a device.

    Args:
        name: path, relative to `folder` if that is given.
        folder: file descriptor of a folder.
        follow_links: follow a symbolic link; otherwise it is an error.

    Raises:
        OSError: it does not exist, cannot be read, or is not a regular file; `strerror` has the reason.
    """
    _require_regular(os.stat(name, dir_fd=folder, follow_symlinks=follow_links), name)
    # O_NONBLOCK and the second check: the file may have been replaced in between.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | (0 if follow_links else os.O_NOFOLLOW)
    descriptor = os.open(name, flags, dir_fd=folder)
    try:
        _require_regular(os.fstat(descriptor), name)
    except OSError:
        os.close(descriptor)
        raise
    return open(descriptor, "rb")  # noqa: PTH123  of a descriptor; the caller closes it


def read_regular(name: str | Path, *, limit: int, folder: int | None = None, follow_links: bool = False) -> bytes:
    """Return the bytes of a regular file of at most `limit` bytes.

    Raises:
        OSError: as `open_regular`; or EFBIG: it is larger.
    """
    with open_regular(name, folder=folder, follow_links=follow_links) as file:
        content = file.read(limit + 1) if os.fstat(file.fileno()).st_size <= limit else None
    if content is None or len(content) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit:,} bytes", str(name))
    return content


def _require_regular(status: os.stat_result, name: str | Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, f"it is {kind_of(status.st_mode)}, not a regular file", str(name))
