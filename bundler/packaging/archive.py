"""A `.tar.gz` that is the same, byte for byte, for the same files."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

__all__ = ["write_archive"]

_LEVEL = 6  # weights hardly compress further, and 9 takes several times as long


def write_archive(folder: Path, archive: Path, *, root: str) -> None:
    """Pack a folder's files below `root/`: sorted, owned by root, dated 1970, without the name and date gzip would store."""
    with (
        archive.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            content = path.read_bytes()
            entry = tarfile.TarInfo(f"{root}/{path.relative_to(folder).as_posix()}")
            entry.size = len(content)
            entry.mode = 0o644
            tar.addfile(entry, io.BytesIO(content))
