"""The header of a safetensors file (https://github.com/huggingface/safetensors, "Format").

Standard library alone (bundler/models/checkpoint_reader.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from bundler.models.inert_pickle import UnreadableError

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
    """A tensor of a file: its type by the format's name, its shape, and where its bytes are."""

    kind: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read_safetensors_header(file: BinaryIO, size: int) -> dict[str, StoredTensor]:
    """Return the tensors that a file of `size` bytes holds, by name.

    Raises:
        UnreadableError: the header is damaged, or says of a tensor what cannot be.
    """
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > _LONGEST_HEADER or 8 + length > size:
        raise UnreadableError(f"it was cut off: its header would have {length:,} bytes, the file has {size:,}")
    try:
        header = json.loads(file.read(length).decode(), object_pairs_hook=_unique)
    except UnreadableError:
        raise
    except (ValueError, RecursionError) as error:
        raise UnreadableError("its header is no JSON object") from error
    if not isinstance(header, dict) or len(header) > _MOST_TENSORS:
        raise UnreadableError(f"its header is no JSON object of up to {_MOST_TENSORS:,} tensors")
    header.pop("__metadata__", None)
    tensors = {name: _tensor(name, entry, start=8 + length, end=size) for name, entry in header.items()}
    position = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].size)):
        if tensor.offset != position:
            raise UnreadableError(f"{name} does not begin where the tensor before it ends")
        position += tensor.size
    if position != size:
        raise UnreadableError(f"it has {size - position:,} bytes behind its last tensor")
    return tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise UnreadableError("its header names a tensor twice")
    return found


def _tensor(name: str, entry: object, *, start: int, end: int) -> StoredTensor:
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(first), int(last)]}:
            pass
        case _:
            raise UnreadableError(f"{name} has no type, shape and place")
    if kind not in ITEM_SIZES:
        raise UnreadableError(f"{name} is of the type {kind[:20]}, which is not known")
    if len(shape) > _MOST_DIMENSIONS or not all(type(extent) is int and 0 <= extent <= end for extent in shape):
        raise UnreadableError(f"{name} has a shape that cannot be")
    if not 0 <= first <= last <= end - start:
        raise UnreadableError(f"{name} reaches beyond the end of the file; it was cut off")
    if math.prod(shape) * ITEM_SIZES[kind] != last - first:
        raise UnreadableError(f"{name} has {last - first:,} bytes, and its shape needs another number")
    return StoredTensor(kind=kind, shape=tuple(shape), offset=start + first, size=last - first)
