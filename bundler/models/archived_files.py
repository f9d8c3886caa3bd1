"""Archives around checkpoints, as training services deliver them: zip, tar (gz, bz2, xz), and gzip of a single file.

Runs in the child process (bundler/models/checkpoint_reader.py): only the standard library is needed.
"""

from __future__ import annotations

import gzip
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from bundler.models.file_kinds import HEAD, looks_like_checkpoint
from bundler.models.pickle_interpreter import UnreadableError
from bundler.models.torch_files import open_zip

__all__ = ["checkpoints_in", "unpack"]

GZIPPED = "the compressed file"
_MOST_MEMBERS = 10_000
_CHUNK = 2**20
_TORCH_0_1 = {"sys_info", "pickle", "storages", "tensors"}  # the members of torch.save's first format, a tar file
_SAVED_MODEL = ("saved_model.pb", "saved_model.pbtxt")


def checkpoints_in(file: BinaryIO, kind: str) -> list[str]:
    """Return the names of the checkpoints in an archive of the kind "zip", "tar" or "gzip".

    Raises:
        UnreadableError: it is damaged, or is itself a checkpoint of an unsupported format.
    """
    names: list[str] = []
    seen: set[str] = set()
    with _failures():
        for count, (name, member) in enumerate(_members(file, kind)):
            if count > _MOST_MEMBERS:
                raise UnreadableError(f"the archive has more than {_MOST_MEMBERS:,} members")
            seen.add(name)
            if name.rpartition("/")[2] in _SAVED_MODEL:
                raise UnreadableError("it is an archive of a TensorFlow SavedModel")
            if looks_like_checkpoint(name, member.read(HEAD)):
                names.append(name)
    if seen >= _TORCH_0_1:
        raise UnreadableError("it is in the tar format of torch 0.1, which is not supported")
    return names


def unpack(file: BinaryIO, kind: str, name: str, target: BinaryIO, *, most: int) -> None:
    """Copy a member of an archive to `target`.

    Raises:
        UnreadableError: it is damaged, or larger than `most` bytes.
    """
    with _failures():
        for found, member in _members(file, kind):
            if found != name:
                continue
            left = most
            while piece := member.read(_CHUNK):
                left -= len(piece)
                if left < 0:
                    raise UnreadableError(f"{name} has more than {most:,} bytes when it is unpacked, the limit for this model")
                target.write(piece)
            return
    raise UnreadableError(f"{name} was removed from the archive while it was read")


def _members(file: BinaryIO, kind: str) -> Iterator[tuple[str, Any]]:
    """Yield the regular files in an archive with their names."""
    file.seek(0)
    if kind == "zip":
        archive = open_zip(file)
        for item in archive.infolist():
            if not item.is_dir():
                with archive.open(item) as member:
                    yield item.filename, member
        return
    if kind == "gzip" and not _holds_tar(file):
        with gzip.open(file) as member:
            yield GZIPPED, member
        return
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r|*") as archive_:
        for item_ in archive_:
            member_ = archive_.extractfile(item_) if item_.isreg() else None
            if member_ is not None:
                yield item_.name, member_


def _holds_tar(file: BinaryIO) -> bool:
    file.seek(0)
    with gzip.open(file) as stream:
        head = stream.read(512)
    file.seek(0)
    return head[257:262] == b"ustar"


@contextmanager
def _failures() -> Iterator[None]:
    """Convert the many exceptions that the standard library raises for damaged archives into UnreadableError."""
    try:
        yield
    except (UnreadableError, MemoryError, OSError) as error:
        if isinstance(error, gzip.BadGzipFile):
            raise UnreadableError(f"the archive is damaged ({error})") from error
        raise
    except (tarfile.TarError, zipfile.BadZipFile, Exception) as error:
        raise UnreadableError(f"the archive is damaged or truncated ({error})") from error
