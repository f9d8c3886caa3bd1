"""A file of weights that a stranger may have made: another process parses it under limits, and here its tensors are used.

The other process (bundler/models/checkpoint_reader.py) reads zip archives, pickles, tar files and headers with bounded memory,
time and output. It answers in JSON, and hands storages over as bytes in memory. Nothing is unpickled in either.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from torch import Tensor

import bundler
from bundler.errors import CheckpointError
from bundler.models.inert_json import from_json
from bundler.models.inert_pickle import UnreadableError
from bundler.models.module_tensors import Candidate, TensorRecord, find_candidates, tensor_record
from bundler.models.torch_files import Place

__all__ = ["CheckpointFile", "Reader", "printable", "read_in_process"]

Reader = Callable[[Mapping[str, Any], tuple[int, ...]], dict[str, Any]]

_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from bundler.models.checkpoint_reader import main; main()"
_MEMORY = 2**30  # bytes of address space
_SECONDS = 10  # of processor time, and one more for each 50 MB
_BYTES_A_SECOND = 50_000_000
_PATIENCE = 12  # times as long may pass on a machine that does other things as well
_PIECE = 2**20
_ALIGNMENT = 64  # bytes, of a storage in memory
_SPARE = 2**28  # bytes beside the model's that its file may have
_GET_AGAIN = "Download or save the file again."

# safetensors' names of types
_SAFETENSORS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
}


def printable(text: object, longest: int = 300) -> str:
    """Return a message or a name in one line without control characters; a file's author chooses what its keys hold."""
    line = " ".join(str(text).split())
    line = line if len(line) <= longest else f"{line[:longest]}…"
    return line if line.isprintable() else line.encode("unicode_escape").decode("ascii")


def read_in_process(task: Mapping[str, Any], descriptors: tuple[int, ...]) -> dict[str, Any]:
    """Run a task of checkpoint_reader in a process of its own, which inherits the file descriptors.

    Raises:
        UnreadableError: what it found wrong, or that it ran into a limit or crashed.
    """
    root = str(Path(bundler.__file__).parents[1])
    command = [sys.executable, "-I", "-S", "-B", "-c", _PROGRAM, root]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(task).encode(),
            capture_output=True,
            check=False,
            pass_fds=descriptors,
            timeout=task["seconds"] * _PATIENCE,
            cwd="/",
        )
    except subprocess.TimeoutExpired as error:
        raise UnreadableError(f"reading it took more than {task['seconds'] * _PATIENCE} s") from error
    if done.returncode < 0:
        signal = -done.returncode
        took = f"took more than {task['seconds']} s of processor time" if signal in (9, 24) else f"ended with signal {signal}"
        raise UnreadableError(f"reading it {took}")
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        lines = done.stderr.decode(errors="replace").splitlines()
        raise UnreadableError(f"reading it failed ({lines[-1] if lines else 'without a message'})") from error
    if "unreadable" in answer:
        raise UnreadableError(answer["unreadable"])
    return answer


class CheckpointFile:
    """A file of weights: what it is, which state dicts are in it, and their tensors when they are asked for.

    Use it in a `with` statement. Every failure is a CheckpointError that names the file.

    Args:
        path: of the file.
        model_bytes: of the model's own float32 tensors, from which limits are derived.
        reader: runs the tasks of checkpoint_reader.
    """

    def __init__(self, path: Path, *, model_bytes: int, reader: Reader = read_in_process) -> None:
        self.path = path
        self.inner: str | None = None  # the member of an archive that is read
        self.kind = ""  # bundler.models.file_kinds
        self._reader = reader
        self._model_bytes = model_bytes
        self._file = _opened(path)
        self._answer: dict[str, Any] = {}
        self._places: dict[str, Place] = {}

    def __enter__(self) -> Self:
        try:
            self._describe()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def size(self) -> int:
        """Bytes of the file, or of the member of an archive that is read."""
        return os.fstat(self._file.fileno()).st_size

    @cached_property
    def description(self) -> object:
        """What the file's pickle describes (bundler.models.inert_pickle); None for a file without one."""
        try:
            return from_json(self._answer["description"]) if "description" in self._answer else None
        except UnreadableError as error:
            raise self.unreadable(error) from error

    @cached_property
    def candidates(self) -> list[Candidate]:
        """The state dicts and modules in the file, the outermost first."""
        if "tensors" in self._answer:
            return [Candidate(path="", tensors={name: _stored(name, item) for name, item in self._answer["tensors"].items()})]
        try:
            return find_candidates(self.description, self._places)
        except UnreadableError as error:
            raise self.unreadable(error) from error

    def load(self, records: Mapping[str, TensorRecord]) -> dict[str, Tensor]:
        """Return tensors of the file. Those that share a storage in the file share it here; their types stay.

        Raises:
            CheckpointError: one cannot be used, its bytes are damaged, or they are more than the model needs.
        """
        for key, record in records.items():
            if record.problem:
                raise self.problem(key, record)
        needed: dict[str, int] = {}
        for record in records.values():
            length = record.count * record.dtype.itemsize
            needed[record.storage] = max(needed.get(record.storage, 0), length)
        total = sum(_aligned(length) for length in needed.values())
        unpacked = sum(4 * _numbers(record) for record in records.values())
        if max(total, unpacked) > (most := 4 * self._model_bytes + _SPARE):
            raise self.unreadable(f"its tensors take {max(total, unpacked):,} bytes, more than {most:,}")
        positions: dict[str, int] = {}
        position = 0
        for storage, length in needed.items():
            positions[storage] = position
            position += _aligned(length)
        content = self._storages(needed, positions, max(total, 1))
        return {key: _tensor(record, content, positions[record.storage]) for key, record in records.items()}

    def tensor(self, value: object, name: str) -> Tensor:
        """Return a tensor that is described anywhere in the pickle; `name` is what messages call it."""
        record = tensor_record(value, self._places)
        if record is None:
            raise self.unreadable(f"{name} is no tensor")
        return self.load({name: record})[name]

    def content(self) -> bytes:
        """Return the whole file, which is no larger than a checkpoint of the model can be."""
        self.refuse_large()
        self._file.seek(0)
        return self._file.read()

    def sha256(self) -> str:
        """Return the SHA-256 of the file as it was given."""
        digest = hashlib.sha256()
        with _opened(self.path) as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
        return digest.hexdigest()

    def refuse_large(self) -> None:
        """Raise a CheckpointError if the file is far larger than any checkpoint of the model."""
        if self.size > (most := 16 * self._model_bytes + _SPARE):
            raise CheckpointError(
                f"the checkpoint {self.named} has {self.size:,} bytes, and the model's weights {self._model_bytes:,}: "
                f"more than {most:,} are not read",
                next_step="Give the weights alone: torch.save(model.state_dict(), FILE).",
            )

    @property
    def named(self) -> str:
        """What messages call the file."""
        path = printable(self.path)
        return path if self.inner is None else f"{path} ({printable(self.inner, 100)})"

    def unreadable(self, reason: object) -> CheckpointError:
        """Return the error for a file that is damaged or hostile."""
        return CheckpointError(f"the checkpoint {self.named} cannot be read: {printable(reason)}", next_step=_GET_AGAIN)

    def problem(self, key: str, record: TensorRecord) -> CheckpointError:
        """Return the error for a tensor that no network can be given."""
        return CheckpointError(
            f"the checkpoint {self.named} cannot be used: {printable(key, 100)} {printable(record.problem)}",
            next_step="Give plain tensors of a float network: torch.save(model.state_dict(), FILE).",
        )

    def _describe(self) -> None:
        self._ask()
        if self.kind not in ("zip", "tar", "gzip"):
            return
        self.refuse_large()
        members = self._answer["members"]
        if len(members) != 1:
            names = ", ".join(printable(name, 60) for name in members[:4]) + (", …" if len(members) > 4 else "")
            holds = f"{len(members)} checkpoints ({names})" if members else "no checkpoint"
            raise CheckpointError(
                f"the archive {self.named} holds {holds}", next_step="Unpack it, and give the file that is meant."
            )
        (name,) = members
        target = _memory_file()
        most = 4 * self._model_bytes + 2 * _SPARE
        task = {"task": "unpack", "kind": self.kind, "member": name, "output": most + 1}
        try:
            self._run(task, target)
        except BaseException:
            target.close()
            raise
        self._file.close()
        self._file, self.inner = target, name
        self._ask()
        if self.kind in ("zip", "tar", "gzip"):
            raise self.unreadable("it is an archive in an archive")

    def _ask(self) -> None:
        self._answer = self._run({"task": "describe"})
        self.kind = self._answer["kind"]
        if refusal := self._answer.get("refusal"):
            raise CheckpointError(f"the checkpoint {self.named} {printable(refusal)}", next_step=self._answer["next_step"])
        self._places = {key: Place(**place) for key, place in self._answer.get("places", {}).items()}
        if "tensors" in self._answer:
            self._places = {
                name: Place(size=item["size"], offset=item["offset"]) for name, item in self._answer["tensors"].items()
            }

    def _storages(self, needed: Mapping[str, int], positions: Mapping[str, int], total: int) -> mmap.mmap:
        """Return storages in memory that only this process sees, each at its position."""
        places = [replace(self._places[key], size=length) for key, length in needed.items()]
        task = {
            "task": "extract",
            "places": [asdict(place) for place in places],
            "positions": [positions[key] for key in needed],
            "output": total,
        }
        with _memory_file() as target:
            os.ftruncate(target.fileno(), total)
            self._run(task, target)
            return mmap.mmap(target.fileno(), total, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)

    def _run(self, task: dict[str, Any], target: BinaryIO | None = None) -> dict[str, Any]:
        read = min(self.size, 16 * self._model_bytes + _SPARE)
        limits = {"memory": _MEMORY, "seconds": _SECONDS + read // _BYTES_A_SECOND}
        descriptors = {"file": os.dup(self._file.fileno())}
        try:
            if target is not None:
                descriptors["target"] = os.dup(target.fileno())
            return self._reader(limits | task | descriptors, tuple(descriptors.values()))
        except UnreadableError as error:
            raise self.unreadable(error) from error
        finally:
            for descriptor in descriptors.values():
                os.close(descriptor)


def _opened(path: Path) -> BinaryIO:
    """Open a regular file; anything else might wait for ever, or have no end."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise CheckpointError(
                f"the checkpoint {printable(path)} cannot be read: it is no regular file (a FIFO, socket or device)",
                next_step="Copy it into a file first.",
            )
        file: BinaryIO = path.open("rb")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint {printable(path)} cannot be read: {getattr(error, 'strerror', None) or error}",
            next_step="--weights takes auto, pretrained, random, or the path of a .pth, .pt, .safetensors or .weights file.",
        ) from error
    return file


def _memory_file() -> BinaryIO:
    """Return a file in memory, for which no disk can be too small."""
    if hasattr(os, "memfd_create"):
        file: BinaryIO = os.fdopen(os.memfd_create("weights"), "w+b")
        return file
    return tempfile.TemporaryFile()


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def _numbers(record: TensorRecord) -> int:
    return math.prod(record.shape)


def _stored(name: str, item: Mapping[str, Any]) -> TensorRecord:
    """Return the record of a safetensors entry, whose header was checked."""
    shape, kind = tuple(item["shape"]), item["kind"]
    if kind not in _SAFETENSORS:
        return TensorRecord(problem="is complex" if kind == "C64" else f"is of the type {kind}, which no weight has")
    dtype = _SAFETENSORS[kind]
    strides = tuple(math.prod(shape[index + 1 :]) for index in range(len(shape)))
    return TensorRecord(dtype=dtype, shape=shape, stride=strides, storage=name, count=item["size"] // dtype.itemsize)


def _tensor(record: TensorRecord, content: mmap.mmap, position: int) -> Tensor:
    if 0 in record.shape or not record.count:
        return torch.empty(record.shape, dtype=record.dtype)
    flat = torch.frombuffer(content, dtype=record.dtype, count=record.count, offset=position)
    return flat.as_strided(record.shape, record.stride, record.offset)
