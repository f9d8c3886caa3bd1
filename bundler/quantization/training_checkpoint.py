"""The file from which a training goes on: written whole or not at all, and read only where its digest is right."""

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

_DIGEST = hashlib.sha256().digest_size  # bytes at the end of the file: the SHA-256 of all before


class _Digesting(io.RawIOBase):
    """Passes on what is written, and digests it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.problem: OSError | None = None  # torch's writer would say that it is at another position than expected

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
    """Write a file beside `path`, bring it to the disk and put it in its place; what was there stays where that fails.

    Returns:
        Whether it could be written. A training goes on without, and a warning says so.
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
        console.warn(f"the checkpoint {path} could not be written ({reason}): an interrupted training goes on from earlier")
        return False
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True


def read_checkpoint(path: Path, *, fingerprint: str) -> dict[str, Any] | None:
    """Return the content of a checkpoint; None where there is none to go on from.

    A file that is damaged, or that another training or version has written, is renamed to `NAME.unused`, with a warning.

    Raises:
        TrainingError: it cannot be read, or not renamed.
    """
    _remove_leftovers(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TrainingError(
            f"the checkpoint {path} cannot be read: {_first_line(error)}",
            next_step="Make it readable, or remove it to train anew.",
        ) from error
    body = memoryview(content)[:-_DIGEST]
    if hashlib.sha256(body).digest() != content[-_DIGEST:]:
        _set_aside(path, "it is damaged")
        return None
    try:
        stored: dict[str, Any] = torch.load(io.BytesIO(body), weights_only=True)
    except Exception as error:  # noqa: BLE001  torch's own, of a file that another version of it has written
        _set_aside(path, f"this version of torch cannot read it: {_first_line(error)}")
        return None
    if stored.get("fingerprint") != fingerprint:
        _set_aside(path, "it belongs to another training: model, weights, pictures, recipe or versions differ")
        return None
    return stored


def _set_aside(path: Path, reason: str) -> None:
    aside = path.with_name(f"{path.name}.unused")
    try:
        path.replace(aside)
    except OSError as error:
        raise TrainingError(
            f"the checkpoint {path} cannot be used ({reason}), and not be renamed: {_first_line(error)}",
            next_step="Remove it to train anew.",
        ) from error
    console.warn(f"the checkpoint {path} is not used: {reason}. It is now {aside.name}; training starts from the beginning")


def _remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed have left half written."""
    for leftover in path.parent.glob(f"{path.name}.*.new"):
        number = leftover.name.removeprefix(f"{path.name}.").removesuffix(".new")
        if number.isdigit() and not Path(f"/proc/{number}").exists():
            with contextlib.suppress(OSError):
                leftover.unlink()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
