"""The header of a safetensors file (https://github.com/huggingface/safetensors, "Format").

Runs in the child process (bundler/models/checkpoint_reader.py): only the standard library is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from bundler.models.pickle_interpreter import UnreadableError
from bundler.strict_json import parse_json

__all__ = ["StoredTensor", "read_safetensors_header"]

_LONGEST_HEADER = 100_000_000  # bytes, as in the format's own reader
_MOST_TENSORS = 100_000
_MOST_DIMENSIONS = 16
ITEM_SIZES: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 1),
}


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor in the file: its type by the format's name, its shape, and the offset and size of its data in bytes."""

    kind: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read_safetensors_header(file: BinaryIO, size: int) -> dict[str, StoredTensor]:
    """Return the tensors in a file of `size` bytes, by name.

    Raises:
        UnreadableError: the header is damaged or inconsistent, or the file is truncated.
    """
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > _LONGEST_HEADER or 8 + length > size:
        raise UnreadableError(f"it is truncated: its header should have {length:,} bytes, the file has {size:,}")
    try:
        header = parse_json(file.read(length))
    except ValueError as error:
        raise UnreadableError(f"its header is not valid JSON: {error}") from error
    if not isinstance(header, dict) or len(header) > _MOST_TENSORS:
        raise UnreadableError(f"its header is not a JSON object of at most {_MOST_TENSORS:,} tensors")
    header.pop("__metadata__", None)
    tensors = {name: _tensor(name, entry, start=8 + length, end=size) for name, entry in header.items()}
    position = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].size)):
        if tensor.offset != position:
            raise UnreadableError(f"the data of {name} does not begin where the data of the previous tensor ends")
        position += tensor.size
    if position != size:
        raise UnreadableError(f"it has {size - position:,} bytes after its last tensor")
    return tensors


def _tensor(name: str, entry: object, *, start: int, end: int) -> StoredTensor:
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(first), int(last)]}:
            pass
        case _:
            raise UnreadableError(f"{name} lacks dtype, shape or data_offsets")
    if kind not in ITEM_SIZES:
        raise UnreadableError(f"{name} has the unknown type {kind[:20]}")
    if len(shape) > _MOST_DIMENSIONS or not all(type(extent) is int and 0 <= extent <= end for extent in shape):
        raise UnreadableError(f"{name} has an invalid shape")
    if not 0 <= first <= last <= end - start:
        raise UnreadableError(f"the data of {name} extends beyond the end of the file; it is truncated")
    if math.prod(shape) * ITEM_SIZES[kind] != last - first:
        raise UnreadableError(f"{name} has {last - first:,} bytes, its shape needs {math.prod(shape) * ITEM_SIZES[kind]:,}")
    return StoredTensor(kind=kind, shape=tuple(shape), offset=start + first, size=last - first)
