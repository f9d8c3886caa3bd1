"""Access to an untrusted checkpoint file, which a child process parses under limits.

The child process (bundler/models/checkpoint_reader.py) reads zip archives, pickles, tar files and headers with bounded memory,
CPU time and output. It answers in JSON and passes storages as bytes in shared memory. Neither process unpickles anything.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
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
from bundler.models.module_tensors import Candidate, TensorRecord, find_candidates, tensor_record
from bundler.models.pickle_interpreter import UnreadableError
from bundler.models.pickle_json import from_json
from bundler.models.torch_files import Place
from bundler.plain_files import open_regular
from bundler.visible import visible

__all__ = ["CheckpointFile", "Reader", "read_in_process"]

Reader = Callable[[Mapping[str, Any], tuple[int, ...]], dict[str, Any]]

_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from bundler.models.checkpoint_reader import main; main()"
_MEMORY = 2**30  # bytes of address space of the child process
_SECONDS = 10  # of CPU time, plus one for each 50 MB of the file
_BYTES_A_SECOND = 50_000_000
_PATIENCE = 12  # wall-clock limit as a multiple of the CPU time limit, for busy machines
_PIECE = 2**20
_ALIGNMENT = 64  # bytes, of the storages in shared memory
_SPARE = 2**28  # bytes that a file may have in addition to the model's tensors
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


def read_in_process(task: Mapping[str, Any], descriptors: tuple[int, ...]) -> dict[str, Any]:
    """Run a task of checkpoint_reader in a child process that inherits the file descriptors.

    Raises:
        UnreadableError: the file is damaged, or the child process exceeded a limit or crashed.
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
        took = f"took more than {task['seconds']} s of CPU time" if signal in (9, 24) else f"ended with signal {signal}"
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
    """A checkpoint file: its format, the state dicts in it, and their tensors, which are read on demand.

    A context manager. All its methods raise CheckpointError, which names the file.

    Args:
        path: of the file.
        model_bytes: size of the model's tensors in float32, from which limits are derived.
        reader: runs a task of checkpoint_reader and returns its answer.
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
        """The file's pickle as records (bundler.models.pickle_interpreter); None for a file without a pickle."""
        try:
            return from_json(self._answer["description"]) if "description" in self._answer else None
        except UnreadableError as error:
            raise self.unreadable(error) from error

    @cached_property
    def candidates(self) -> list[Candidate]:
        """The state dicts and modules in the file, outermost first."""
        if "tensors" in self._answer:
            return [Candidate(path="", tensors={name: _stored(name, item) for name, item in self._answer["tensors"].items()})]
        try:
            return find_candidates(self.description, self._places)
        except UnreadableError as error:
            raise self.unreadable(error) from error

    def load(self, records: Mapping[str, TensorRecord]) -> dict[str, Tensor]:
        """Return tensors with their types in the file. Tensors that share a storage in the file share memory.

        Raises:
            CheckpointError: a tensor cannot be used or is damaged, or together they are larger than 4 times the model.
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
            raise self.unreadable(f"its tensors need {max(total, unpacked):,} bytes; the limit for this model is {most:,}")
        positions: dict[str, int] = {}
        position = 0
        for storage, length in needed.items():
            positions[storage] = position
            position += _aligned(length)
        content = self._storages(needed, positions, max(total, 1))
        return {key: _tensor(record, content, positions[record.storage]) for key, record in records.items()}

    def tensor(self, value: object, name: str) -> Tensor:
        """Return the tensor that a value of `description` describes; `name` names it in messages."""
        record = tensor_record(value, self._places)
        if record is None:
            raise self.unreadable(f"{name} is not a tensor")
        return self.load({name: record})[name]

    def content(self) -> bytes:
        """Return the bytes of the whole file, after checking its size."""
        self.refuse_large()
        self._file.seek(0)
        return self._file.read()

    def sha256(self) -> str:
        """Return the SHA-256 of the file at `path`, which may be an archive around the checkpoint."""
        digest = hashlib.sha256()
        with _opened(self.path) as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
        return digest.hexdigest()

    def refuse_large(self) -> None:
        """Raise a CheckpointError if the file is larger than 16 times the model and 256 MiB."""
        if self.size > (most := 16 * self._model_bytes + _SPARE):
            raise CheckpointError(
                f"the checkpoint {self.named} has {self.size:,} bytes; the limit for this model, whose weights have "
                f"{self._model_bytes:,}, is {most:,}",
                next_step="Save the weights alone: torch.save(model.state_dict(), FILE).",
            )

    @property
    def named(self) -> str:
        """The file's name in messages."""
        path = visible(self.path, 300)
        return path if self.inner is None else f"{path} ({visible(self.inner, 100)})"

    def unreadable(self, reason: object) -> CheckpointError:
        """Return the error for a file that is damaged or hostile."""
        return CheckpointError(f"the checkpoint {self.named} cannot be read: {visible(reason, 300)}", next_step=_GET_AGAIN)

    def problem(self, key: str, record: TensorRecord) -> CheckpointError:
        """Return the error for a tensor that cannot be loaded into a network."""
        return CheckpointError(
            f"the checkpoint {self.named} cannot be used: {visible(key, 100)} {visible(record.problem, 300)}",
            next_step="Save plain tensors of a float network: torch.save(model.state_dict(), FILE).",
        )

    def _describe(self) -> None:
        self._ask()
        if self.kind not in ("zip", "tar", "gzip"):
            return
        self.refuse_large()
        members = self._answer["members"]
        if len(members) != 1:
            names = ", ".join(visible(name, 60) for name in members[:4]) + (", …" if len(members) > 4 else "")
            found = f"{len(members)} checkpoints ({names})" if members else "no checkpoint"
            raise CheckpointError(
                f"the archive {self.named} contains {found}", next_step="Unpack it, and pass the checkpoint itself."
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
            raise self.unreadable("it is an archive within an archive")

    def _ask(self) -> None:
        self._answer = self._run({"task": "describe"})
        self.kind = self._answer["kind"]
        if refusal := self._answer.get("refusal"):
            raise CheckpointError(f"the checkpoint {self.named} {visible(refusal, 300)}", next_step=self._answer["next_step"])
        self._places = {key: Place(**place) for key, place in self._answer.get("places", {}).items()}
        if "tensors" in self._answer:
            self._places = {
                name: Place(size=item["size"], offset=item["offset"]) for name, item in self._answer["tensors"].items()
            }

    def _storages(self, needed: Mapping[str, int], positions: Mapping[str, int], total: int) -> mmap.mmap:
        """Return a private mapping of shared memory with the storages at their positions."""
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
    """Open a regular file, or the one that a symbolic link points to."""
    try:
        return open_regular(path, follow_links=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint {visible(path, 300)} cannot be read: {getattr(error, 'strerror', None) or error}",
            next_step="--weights takes auto, pretrained, random, or the path of a .pth, .pt, .safetensors or .weights file.",
        ) from error


def _memory_file() -> BinaryIO:
    """Return a file in memory, which needs no disk space."""
    if hasattr(os, "memfd_create"):
        file: BinaryIO = os.fdopen(os.memfd_create("weights"), "w+b")
        return file
    return tempfile.TemporaryFile()


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def _numbers(record: TensorRecord) -> int:
    return math.prod(record.shape)


def _stored(name: str, item: Mapping[str, Any]) -> TensorRecord:
    """Return the record of an entry of a validated safetensors header."""
    shape, kind = tuple(item["shape"]), item["kind"]
    if kind not in _SAFETENSORS:
        return TensorRecord(problem="is complex" if kind == "C64" else f"has the unsupported type {kind}")
    dtype = _SAFETENSORS[kind]
    strides = tuple(math.prod(shape[index + 1 :]) for index in range(len(shape)))
    return TensorRecord(dtype=dtype, shape=shape, stride=strides, storage=name, count=item["size"] // dtype.itemsize)


def _tensor(record: TensorRecord, content: mmap.mmap, position: int) -> Tensor:
    if 0 in record.shape or not record.count:
        return torch.empty(record.shape, dtype=record.dtype)
    flat = torch.frombuffer(content, dtype=record.dtype, count=record.count, offset=position)
    return flat.as_strided(record.shape, record.stride, record.offset)
