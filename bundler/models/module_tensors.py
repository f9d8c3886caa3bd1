"""State dicts and modules in the records of a checkpoint's pickle, and the storages of their tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from bundler.models.pickle_interpreter import MOST_STEPS, Global, Object, Persistent, UnreadableError
from bundler.models.torch_files import Place

__all__ = ["Candidate", "TensorRecord", "find_candidates", "preferred", "tensor_record"]

MOST_BYTES = 8 * 2**30  # of a tensor; also the largest value in a size or stride
_MOST_DIMENSIONS = 16
_LONGEST_KEY = 500  # characters; this limits the nesting as well
_DEEPEST = 6  # levels of wrappers around a state dict
_MOST_CANDIDATES = 200
_MOST_ELEMENTS = 32  # elements of a list that are searched
_WRAPPERS = ("model", "state_dict", "model_state_dict")  # keys under which training scripts store the weights

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
_COMPLEX = ("ComplexFloatStorage", "ComplexDoubleStorage")
_NEWER_DTYPES = {
    **{str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES.values()},
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "uint16": torch.uint16,
    "uint32": torch.uint32,
    "uint64": torch.uint64,
}  # by the names in torch that _rebuild_tensor_v3 uses


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """A tensor that has not been read yet: its type, its shape, and its place in a storage.

    Args:
        dtype: of the elements.
        shape: of the tensor.
        stride: in elements.
        offset: of the first element in the storage, in elements.
        storage: key of the storage.
        count: elements in the storage.
        problem: why the tensor cannot be loaded into a network, as a predicate of its key; the other fields are unset then.
    """

    dtype: torch.dtype = torch.float32
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    offset: int = 0
    storage: str = ""
    count: int = 0
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A state dict or a module in a checkpoint.

    Args:
        path: keys and attributes that lead to it, outermost first, joined by dots; empty for the whole file.
        tensors: by key, in the order of the file.
        is_module: whether it is a pickled nn.Module.
        value: its record.
    """

    path: str
    tensors: Mapping[str, TensorRecord]
    is_module: bool = False
    value: object = field(default=None, repr=False, compare=False)


def find_candidates(description: object, places: Mapping[str, Place]) -> list[Candidate]:
    """Return each state dict and each module with tensors in the records of a pickle, outermost first.

    Raises:
        UnreadableError: it is nested too deeply, or its parts refer to each other too often.
    """
    return _Search(places).candidates(description)


def preferred(candidates: list[Candidate]) -> Candidate | None:
    """Return the candidate that YOLOv5's own loader would take: `ema` before `model` if it is a module."""
    named = {candidate.path: candidate for candidate in candidates}
    modules = [candidate for path in ("", "ema", *_WRAPPERS) if (candidate := named.get(path)) and candidate.is_module]
    plain = [candidate for path in (*_WRAPPERS, "") if (candidate := named.get(path))]
    return next(iter([*modules, *plain, *candidates]), None)


def tensor_record(value: object, places: Mapping[str, Place]) -> TensorRecord | None:
    """Return the record of a tensor; None if the value is not a tensor."""
    return _Search(places).tensor(value)


_TENSOR = Global("torch._utils", "_rebuild_tensor_v2")
_NEWER_TENSOR = Global("torch._utils", "_rebuild_tensor_v3")
_PARAMETERS = (Global("torch._utils", "_rebuild_parameter"), Global("torch._utils", "_rebuild_parameter_with_state"))
_SUBCLASS = Global("torch._tensor", "_rebuild_from_type_v2")
_PLAIN_CLASSES = (
    Global("torch", "Tensor"),
    Global("torch._tensor", "Tensor"),
    Global("torch.nn.parameter", "Parameter"),
    Global("torch.nn.parameter", "Buffer"),
)
_OTHER_TENSORS = {
    "_rebuild_qtensor": "is quantized",
    "_rebuild_sparse_tensor": "is sparse",
    "_rebuild_nested_tensor": "is a nested tensor",
    "_rebuild_meta_tensor_no_storage": "is on the meta device, without values",
    "_rebuild_device_tensor_from_numpy": "is a tensor of another device (XLA, IPU or the like)",
    "_rebuild_device_tensor_from_cpu_tensor": "is a tensor of another device (XLA, IPU or the like)",
    "_rebuild_wrapper_subclass": "is of a tensor subclass",
}
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy._core.numeric", "numpy.core.numeric")


class _Search:
    """Finds modules and state dicts among Objects; UnreadableError if there are too many ways to them."""

    def __init__(self, places: Mapping[str, Place]) -> None:
        self._places = places
        self._steps = 0

    def candidates(self, description: object) -> list[Candidate]:
        found: list[Candidate] = []
        seen: set[int] = set()
        waiting: list[tuple[str, object, int]] = [("", description, 0)]
        for path, value, depth in waiting:  # grows while it is read: the outermost come first
            if id(value) in seen or depth > _DEEPEST or len(found) >= _MOST_CANDIDATES:
                continue
            seen.add(id(value))
            if isinstance(value, list | tuple):
                waiting.extend(
                    (_joined(path, str(index)), item, depth + 1) for index, item in enumerate(value[:_MOST_ELEMENTS])
                )
            if not isinstance(value, Object):
                continue
            attributes = self._attributes(value)
            if "_modules" in attributes:
                if tensors := self._module(value):
                    found.append(Candidate(path=path, tensors=tensors, is_module=True, value=value))
                continue
            entries = attributes | self._mapping(value)
            records = {_bounded(key): record for key, entry in entries.items() if (record := self.tensor(entry)) is not None}
            if records:
                found.append(Candidate(path=path, tensors=records, value=value))
            waiting.extend(
                (_joined(path, key), entry, depth + 1)
                for key, entry in entries.items()
                if key not in records and isinstance(entry, list | tuple | Object)
            )
        return found

    def _module(self, value: object) -> dict[str, TensorRecord]:
        """Return the tensors of a pickled nn.Module in the order of its state dict."""
        tensors: dict[str, TensorRecord] = {}
        waiting = [("", value)]
        while waiting:
            prefix, module = waiting.pop()
            attributes = self._attributes(module)
            if prefix and "_modules" not in attributes:
                tensors[prefix[:-1]] = TensorRecord(problem=f"is made by {_maker(module)}, which is not executed")
                continue
            transient = self._names(attributes.get("_non_persistent_buffers_set"))
            buffers = self._mapping(attributes.get("_buffers")).items()
            own = [
                *self._mapping(attributes.get("_parameters")).items(),
                *(item for item in buffers if item[0] not in transient),
            ]
            for name, entry in own:
                if entry is not None:
                    made = TensorRecord(problem=f"is made by {_maker(entry)}, which is not executed")
                    tensors[_bounded(prefix + name)] = self.tensor(entry) or made
            children = reversed(self._mapping(attributes.get("_modules")).items())
            waiting.extend((_bounded(f"{prefix}{name}."), child) for name, child in children if child is not None)
        return tensors

    def _attributes(self, value: object) -> dict[str, object]:
        """Return the attributes that unpickling would set on an object."""
        state = value.state if isinstance(value, Object) else None
        return self._mapping(state[0] if isinstance(state, tuple) and state else state)  # a tuple if the class has __slots__

    def _mapping(self, value: object) -> dict[str, object]:
        """Return the items with string keys of a dict or OrderedDict; an empty dict for other values."""
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
        """Limit the search: a shared module can be reached on exponentially many paths."""
        self._steps += 1 + steps
        if self._steps > MOST_STEPS:
            raise UnreadableError("its modules refer to each other too often")

    def tensor(self, value: object) -> TensorRecord | None:
        """Return the record of a tensor; None if the value is not a tensor."""
        match value:
            case Object(maker=maker, arguments=(data, *_)) if maker in _PARAMETERS:
                value = data
        match value:
            case Object(maker=maker, arguments=(function, kind, arguments, *_)) if maker == _SUBCLASS:
                if kind not in _PLAIN_CLASSES:
                    return TensorRecord(problem=f"is of the tensor subclass {kind}")
                value = Object(function, arguments)
        match value:
            case Object(maker=Global() as maker, arguments=tuple(arguments)):
                return self._made(maker, arguments)
        return None

    def _made(self, maker: Global, arguments: tuple[object, ...]) -> TensorRecord | None:
        try:
            if maker == _TENSOR and len(arguments) in (6, 7):
                return self._rebuild(*arguments)
            if maker == _NEWER_TENSOR and len(arguments) in (7, 8):
                storage, offset, size, stride, grad, hooks, dtype, *metadata = arguments
                return self._rebuild(storage, offset, size, stride, grad, hooks, *metadata, dtype=dtype)
        except UnreadableError as error:
            return TensorRecord(problem=f"cannot be read: {error}")
        if maker.module == "torch._utils" and maker.name in _OTHER_TENSORS:
            return TensorRecord(problem=_OTHER_TENSORS[maker.name])
        if maker.module in _NUMPY:
            return TensorRecord(problem="is a NumPy array, not a tensor")
        return None

    def _rebuild(
        self, storage: object, offset: object, size: object, stride: object, *rest: object, dtype: object = None
    ) -> TensorRecord:
        """Do what torch's _rebuild_tensor_v2 and _v3 do, after checking that the tensor lies within its storage.

        `rest` is requires_grad, hooks, and optional metadata with the negative and conjugate bits.
        """
        dimensions, steps = _whole_numbers(size), _whole_numbers(stride)
        if len(dimensions) != len(steps) or len(dimensions) > _MOST_DIMENSIONS:
            raise UnreadableError(f"it has {len(dimensions)} dimensions and {len(steps)} strides")
        (start,) = _whole_numbers((offset,))
        if len(rest) > 2 and self._mapping(rest[2]):
            raise UnreadableError("it is stored negated or conjugated")
        kind, key, count = self._storage(storage, dtype)
        if math.prod(max(dimension, 1) for dimension in dimensions) * max(kind.itemsize, 4) > MOST_BYTES:
            raise UnreadableError(f"it would need more than {MOST_BYTES:,} bytes")
        end = start + sum((dimension - 1) * step for dimension, step in zip(dimensions, steps, strict=True))
        if 0 not in dimensions and end >= count:
            raise UnreadableError(f"its last element has the index {end:,} in a storage of {count:,} elements")
        return TensorRecord(dtype=kind, shape=dimensions, stride=steps, offset=start, storage=key, count=count)

    def _storage(self, value: object, dtype: object) -> tuple[torch.dtype, str, int]:
        """Return the element type of a storage, its key, and the number of elements."""
        match value, dtype:
            case Persistent(identifier=("storage", Global(module="torch", name=name), str(key), _, count, *rest)), None:
                if name in _COMPLEX:
                    raise UnreadableError("it is complex")
                if name not in _DTYPES or any(part is not None for part in rest):
                    raise UnreadableError("its storage is of an unknown type")
                kind, item = _DTYPES[name], _DTYPES[name].itemsize
            case (
                Persistent(identifier=("storage", Global(name="UntypedStorage"), str(key), _, count)),
                Global(module="torch", name=name),
            ) if name in _NEWER_DTYPES:
                kind, item = _NEWER_DTYPES[name], 1
            case _:
                raise UnreadableError("its storage is of an unknown type")
        (count,) = _whole_numbers((count,))
        if key not in self._places:
            raise UnreadableError(f"its storage data/{key} is missing")
        if count * item > (size := self._places[key].size):
            raise UnreadableError(f"its storage data/{key} has {size:,} bytes, not {count:,} elements of {item}")
        return kind, key, count * item // kind.itemsize


def _joined(path: str, key: str) -> str:
    return _bounded(f"{path}.{key}" if path else key)


def _bounded(key: str) -> str:
    if len(key) > _LONGEST_KEY:
        raise UnreadableError(f"it is nested too deeply, in {key[:40]}…")
    return key


def _maker(value: object) -> object:
    return value.maker if isinstance(value, Object) and isinstance(value.maker, Global) else type(value).__name__


def _whole_numbers(values: object) -> tuple[int, ...]:
    """Return a size or stride whose values are integers from 0 to `MOST_BYTES`: larger ones overflow in torch."""
    if isinstance(values, tuple) and all(type(value) is int and 0 <= value <= MOST_BYTES for value in values):
        return values
    raise UnreadableError(f"its size, stride, offset or storage size is not an integer from 0 to {MOST_BYTES:,}")
