"""The checkpoint file of a training: written atomically, and read only if its digest is correct."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch

from bundler import console
from bundler.errors import TrainingError

__all__ = ["read_checkpoint", "write_checkpoint"]

_DIGEST = hashlib.sha256().digest_size  # bytes; the file ends with the SHA-256 of everything before


class _Digesting(io.RawIOBase):
    """Writes to a file and computes the SHA-256 of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.problem: OSError | None = None  # torch.save hides it behind a message about the file position

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            self.problem = error
            raise
        return len(memoryview(data).cast("B"))


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> bool:
    """Write a temporary file next to `path`, flush it to the disk and rename it to `path`.

    If that fails, a warning is shown, an earlier checkpoint is kept, and the training continues.

    Returns:
        Whether the checkpoint was written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    digesting: _Digesting | None = None
    try:
        with temporary.open("wb") as file:
            digesting = _Digesting(file)
            torch.save(dict(content), cast("IO[bytes]", digesting))
            file.write(digesting.digest.digest())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        reason = _first_line(digesting.problem if digesting is not None and digesting.problem is not None else error)
        console.warn(
            f"the checkpoint {path} could not be written ({reason}): an interrupted training resumes from the last one"
        )
        return False
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True


def read_checkpoint(path: Path, *, fingerprint: str) -> dict[str, Any] | None:
    """Return the content of a checkpoint, or None if there is none that can be used.

    A file that is damaged, or that another training or version has written, is renamed to `NAME.unused`, with a warning.

    Raises:
        TrainingError: the file cannot be read or renamed.
    """
    _remove_leftovers(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TrainingError(
            f"the checkpoint {path} cannot be read: {_first_line(error)}",
            next_step="Make it readable, or remove it to train from the beginning.",
        ) from error
    body = memoryview(content)[:-_DIGEST]
    if hashlib.sha256(body).digest() != content[-_DIGEST:]:
        _set_aside(path, "it is damaged")
        return None
    try:
        stored: dict[str, Any] = torch.load(io.BytesIO(body), weights_only=True)
    except Exception as error:  # noqa: BLE001  torch's errors for files of other versions vary
        _set_aside(path, f"this version of torch cannot read it: {_first_line(error)}")
        return None
    if stored.get("fingerprint") != fingerprint:
        _set_aside(path, "it belongs to another training (other model, weights, images, training options or versions)")
        return None
    return stored


def _set_aside(path: Path, reason: str) -> None:
    aside = path.with_name(f"{path.name}.unused")
    try:
        path.replace(aside)
    except OSError as error:
        raise TrainingError(
            f"the checkpoint {path} cannot be used ({reason}), and cannot be renamed: {_first_line(error)}",
            next_step="Remove it to train from the beginning.",
        ) from error
    console.warn(f"the checkpoint {path} is not used: {reason}. It was renamed to {aside.name}; the training starts anew")


def _remove_leftovers(path: Path) -> None:
    """Remove incomplete files of processes that were killed."""
    for leftover in path.parent.glob(f"{path.name}.*.new"):
        number = leftover.name.removeprefix(f"{path.name}.").removesuffix(".new")
        if number.isdigit() and not Path(f"/proc/{number}").exists():
            with contextlib.suppress(OSError):
                leftover.unlink()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
