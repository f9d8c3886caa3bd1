"""Tensors of a torch file that holds whole pickled objects, read without importing or calling anything that it names."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bundler.errors import CheckpointError
from bundler.models.inert_pickle import MOST_STEPS, Global, Object, Persistent, UnreadableError, interpret

__all__ = ["Payload", "read_module_tensors", "read_payload"]

_MOST_BYTES = 4 * 2**30  # of a file's members, and of the tensors in it
_MOST_DIMENSIONS = 16
_LONGEST_KEY = 500  # characters; it bounds the nesting as well
_WRAPPERS = ("model", "state_dict", "model_state_dict")  # where training scripts put what is wanted

_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before it wrote zip archives (torch 1.6)
_SAVE_STATE_DICT = (
    "Load it once with an installation that you trust, and save its tensors alone: torch.save(model.state_dict(), FILE)."
)
_GET_AGAIN = "Download or save the file again."

_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read_module_tensors(content: bytes, *, source: str) -> dict[str, Tensor]:
    """Return the state dict of the module, or the state dict itself, that a checkpoint holds.

    `ema` goes before `model` if it is a module, as in Ultralytics' own loader. Half precision becomes float32, anything else
    stays what it is. Tensors that share a storage in the file share it here. `source` is what messages call the file.

    Raises:
        CheckpointError: it is no zip archive of torch's, it is damaged, or there is no module and no state dict in it.
    """
    if content.startswith(_LEGACY):
        raise CheckpointError(
            f"the checkpoint {source} is of a format from before torch 1.6, which cannot be read without executing it",
            next_step=_SAVE_STATE_DICT,
        )
    try:
        archive = _Archive(content)
        tensors = _Search(archive).state_dict(interpret(archive.member("data.pkl")))
    except UnreadableError as error:
        raise _unreadable(source, error) from error
    if not tensors:
        raise CheckpointError(
            f"the checkpoint {source} holds neither a module with tensors nor a state dict", next_step=_SAVE_STATE_DICT
        )
    return tensors


@dataclass(frozen=True, kw_only=True)
class Payload:
    """What a checkpoint's pickle describes, and what reads a tensor in it by its name in messages (CheckpointError)."""

    description: object
    tensor: Callable[[object, str], Tensor]


def read_payload(content: bytes, *, source: str) -> Payload:
    """Return what the pickle of a checkpoint describes.

    Raises:
        CheckpointError: it is no zip archive of torch's, or it is damaged.
    """

    def tensor(value: object, name: str) -> Tensor:
        try:
            return search.tensor(value, name)
        except UnreadableError as error:
            raise _unreadable(source, error) from error

    try:
        archive = _Archive(content)
        search = _Search(archive)
        return Payload(description=interpret(archive.member("data.pkl")), tensor=tensor)
    except UnreadableError as error:
        raise _unreadable(source, error) from error


def _unreadable(source: str, error: UnreadableError) -> CheckpointError:
    return CheckpointError(f"the checkpoint {source} cannot be read: {_printable(error)}", next_step=_GET_AGAIN)


def _printable(error: Exception) -> str:
    """Return a message in one line; it may quote names of the file's, which hold whatever their author put there."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(str(error).split())[:300])


# The archive


class _Archive:
    """A zip archive of torch's, in memory; every failure is an UnreadableError."""

    def __init__(self, content: bytes) -> None:
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(content))
        except Exception as error:  # zipfile has no common type for what it finds in damaged archives
            raise UnreadableError(f"it is no zip archive, or was cut off ({error})") from error
        members = self._archive.infolist()
        if (total := sum(member.file_size for member in members)) > _MOST_BYTES:
            raise UnreadableError(f"its members would unpack to {total:,} bytes, more than {_MOST_BYTES:,}")
        roots = [name.removesuffix("/data.pkl") for name in self._archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise UnreadableError(f"it has {len(roots) or 'no'} members data.pkl, so that torch did not write it")
        self._root = roots[0]
        if self.has("byteorder") and (order := self.member("byteorder")) != b"little":
            raise UnreadableError(f"its byte order is {order[:20]!r}, not little")

    def has(self, name: str) -> bool:
        return f"{self._root}/{name}" in self._archive.NameToInfo

    def member(self, name: str) -> bytes:
        if not self.has(name):
            raise UnreadableError(f"its member {name} is missing")
        try:
            return self._archive.read(f"{self._root}/{name}")
        except Exception as error:  # as above
            raise UnreadableError(f"its member {name} is damaged ({error})") from error


# The tensors


_REBUILD_TENSOR = Global("torch._utils", "_rebuild_tensor_v2")
_REBUILD_PARAMETER = (
    Global("torch._utils", "_rebuild_parameter"),
    Global("torch._utils", "_rebuild_parameter_with_state"),
)


class _Search:
    """Finds modules and state dicts among Objects, and reads their tensors; UnreadableError if one is not what it seems."""

    def __init__(self, archive: _Archive) -> None:
        self._archive = archive
        self._members: dict[str, Tensor] = {}  # uint8
        self._steps = 0
        self._bytes = 0

    def state_dict(self, payload: object) -> dict[str, Tensor]:
        """Return the tensors of the first thing in a checkpoint that has any; an empty dict if nothing has."""
        entries = self._mapping(payload)
        wrapped = [entries.get(key) for key in _WRAPPERS]
        for candidate in (payload, entries.get("ema"), *wrapped):
            if tensors := self._module(candidate):
                return tensors
        for candidate in (*wrapped, payload):
            if tensors := self._plain(candidate):
                return tensors
        return {}

    def _plain(self, value: object) -> dict[str, Tensor]:
        """Return the tensors of a state dict; an empty dict if anything else is in it."""
        entries = self._mapping(value)
        if not all(_tensor_arguments(entry) for entry in entries.values()):
            return {}
        return {_bounded(key): self.tensor(entry, key) for key, entry in entries.items()}

    def _module(self, value: object) -> dict[str, Tensor]:
        """Return the state dict of a pickled nn.Module in torch's order; an empty dict if it is none."""
        tensors: dict[str, Tensor] = {}
        waiting = [("", value)]
        while waiting:
            prefix, module = waiting.pop()
            attributes = self._attributes(module)
            if prefix and "_modules" not in attributes:
                raise UnreadableError(f"{prefix[:-1]} is made by {_maker(module)}, which is not executed")
            transient = self._names(attributes.get("_non_persistent_buffers_set"))
            buffers = self._mapping(attributes.get("_buffers")).items()
            own = [
                *self._mapping(attributes.get("_parameters")).items(),
                *(item for item in buffers if item[0] not in transient),
            ]
            for name, entry in own:
                if entry is not None:
                    key = _bounded(prefix + name)
                    tensors[key] = self.tensor(entry, key)
            children = reversed(self._mapping(attributes.get("_modules")).items())
            waiting.extend((_bounded(f"{prefix}{name}."), child) for name, child in children if child is not None)
        return tensors

    def _attributes(self, value: object) -> dict[str, object]:
        """Return the attributes that unpickling would give to an object."""
        state = value.state if isinstance(value, Object) else None
        return self._mapping(state[0] if isinstance(state, tuple) and state else state)  # a tuple if the class has __slots__

    def _mapping(self, value: object) -> dict[str, object]:
        """Return the items of a dict or OrderedDict whose keys are strings; none of anything else."""
        items = value.items if isinstance(value, Object) else []
        self._count(len(items))
        return {key: item for key, item in items if isinstance(key, str)}

    def _names(self, value: object) -> set[str]:
        """Return the strings in a set."""
        if isinstance(value, Object) and isinstance(value.arguments, tuple) and len(value.arguments) == 1:
            value = value.arguments[0]  # protocols below 4 write set([…])
        elements = value if isinstance(value, list) else []
        self._count(len(elements))
        return {element for element in elements if isinstance(element, str)}

    def _count(self, steps: int) -> None:
        """Bound the search: one module may be reached in more ways than there is time for."""
        self._steps += 1 + steps
        if self._steps > MOST_STEPS:
            raise UnreadableError("its modules hold each other too often")

    def tensor(self, value: object, key: str) -> Tensor:
        arguments = _tensor_arguments(value)
        if arguments is None:
            raise UnreadableError(f"{key} is made by {_maker(value)}, which is not executed")
        try:
            tensor = self._rebuild(*arguments)
        except UnreadableError as error:
            raise UnreadableError(f"{key}: {error}") from error
        return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor

    def _rebuild(self, storage: object, offset: object, size: object, stride: object, *rest: object) -> Tensor:
        """Do what torch's _rebuild_tensor_v2 does, after checking that the tensor lies inside its storage.

        `rest` is requires_grad, hooks, and perhaps metadata, which say whether the numbers are meant negated or conjugated.
        """
        dimensions, steps = _whole_numbers(size), _whole_numbers(stride)
        if len(dimensions) != len(steps) or len(dimensions) > _MOST_DIMENSIONS:
            raise UnreadableError(f"it has {len(dimensions)} dimensions and {len(steps)} strides")
        (start,) = _whole_numbers((offset,))
        if len(rest) > 2 and self._mapping(rest[2]):
            raise UnreadableError("it is stored negated or conjugated")
        flat = self._storage(storage)
        self._bytes += math.prod(max(dimension, 1) for dimension in dimensions) * max(flat.itemsize, torch.float32.itemsize)
        if self._bytes > _MOST_BYTES:
            raise UnreadableError(f"this and the tensors before it would take more than {_MOST_BYTES:,} bytes")
        if 0 in dimensions:
            return torch.empty(dimensions, dtype=flat.dtype)
        end = start + sum((dimension - 1) * step for dimension, step in zip(dimensions, steps, strict=True))
        if end >= len(flat):
            raise UnreadableError(f"it reaches to number {end:,} of a storage of {len(flat):,}")
        return flat.as_strided(dimensions, steps, start)

    def _storage(self, value: object) -> Tensor:
        """Return a storage's numbers, [N]; one that several tensors name is read once."""
        match value:
            case Persistent(identifier=("storage", Global(module="torch", name=kind), str(key), _, count)) if kind in _DTYPES:
                dtype = _DTYPES[kind]
                (count,) = _whole_numbers((count,))
            case _:
                raise UnreadableError("its storage is of a kind that this program does not know")
        if key not in self._members:
            content = bytearray(self._archive.member(f"data/{key}"))
            self._members[key] = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
        member = self._members[key]
        if count * dtype.itemsize > len(member):
            raise UnreadableError(
                f"its storage data/{key} has {len(member):,} bytes, not {count:,} numbers of {dtype.itemsize}"
            )
        return member[: count * dtype.itemsize].view(dtype)


def _tensor_arguments(value: object) -> tuple[object, ...] | None:
    """Return what _rebuild_tensor_v2 would be called with if that, or a Parameter of it, is what `value` is."""
    match value:
        case Object(maker=maker, arguments=(data, *_)) if maker in _REBUILD_PARAMETER:
            value = data
    match value:
        case Object(maker=maker, arguments=tuple(arguments)) if maker == _REBUILD_TENSOR and len(arguments) in (6, 7):
            return arguments
    return None


def _bounded(key: str) -> str:
    if len(key) > _LONGEST_KEY:
        raise UnreadableError(f"its modules are nested too deeply, in {key[:40]}…")
    return key


def _maker(value: object) -> object:
    return value.maker if isinstance(value, Object) and isinstance(value.maker, Global) else type(value).__name__


def _whole_numbers(values: object) -> tuple[int, ...]:
    """Return a size or stride, of which no number is so large that torch's own arithmetic overflows."""
    if isinstance(values, tuple) and all(type(value) is int and 0 <= value <= _MOST_BYTES for value in values):
        return values
    raise UnreadableError("its size, stride, offset or storage is not given in whole numbers that are possible")
