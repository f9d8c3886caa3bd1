"""The two containers that torch.save writes: a zip archive, and before torch 1.6 one pickle after the other.

This module and what it imports need the standard library alone: they run in a process of their own
(bundler/models/checkpoint_reader.py).
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, BinaryIO

from bundler.models.inert_pickle import Global, Object, Persistent, UnreadableError, interpret

__all__ = ["LEGACY", "Place", "TorchFile", "is_legacy", "open_zip", "read_legacy_file", "read_storage", "read_torch_zip"]

LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # a pickle of torch.serialization.MAGIC_NUMBER
_LEGACY = re.compile(rb"\x80[\x02-\x05](\x95.{8})?" + re.escape(LEGACY[2:]), re.DOTALL)  # of any protocol

_MOST_MEMBERS = 200_000
_LONGEST_PICKLE = 64 * 2**20  # bytes; one of 2,000,000 steps is far smaller
_CHUNK = 2**20
_SIZE = struct.Struct("<q")

ITEM_SIZES: Mapping[str, int] = {
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "DoubleStorage": 8,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QInt32Storage": 4,
    "Float8_e4m3fnStorage": 1,
    "Float8_e5m2Storage": 1,
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the bytes of a storage are: a member of the zip archive, or an offset in the file."""

    size: int
    member: str | None = None
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class TorchFile:
    """What the pickle of a file describes, and where the storages are that it names."""

    description: object
    places: Mapping[str, Place]


def is_legacy(head: bytes) -> bool:
    """Say whether a file begins as torch.save wrote it before torch 1.6."""
    return _LEGACY.match(head) is not None


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
    """Open a zip archive.

    Raises:
        UnreadableError: it is none, or damaged.
    """
    try:
        archive = zipfile.ZipFile(file)
    except Exception as error:  # zipfile has no common type for what it finds in damaged archives
        raise UnreadableError(f"its zip archive is damaged or was cut off ({error})") from error
    if len(archive.infolist()) > _MOST_MEMBERS:
        raise UnreadableError(f"its zip archive has more than {_MOST_MEMBERS:,} members")
    return archive


def read_torch_zip(archive: zipfile.ZipFile) -> TorchFile:
    """Read the pickle of a zip archive that torch.save wrote; the storages stay where they are.

    Raises:
        UnreadableError: it is damaged.
    """
    names = archive.namelist()
    roots = [name.removesuffix("data.pkl") for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise UnreadableError(f"it has {len(roots) or 'no'} members data.pkl, so that torch did not write it")
    (root,) = roots
    if f"{root}byteorder" in archive.NameToInfo and (order := _member(archive, f"{root}byteorder")) != b"little":
        raise UnreadableError(f"its byte order is {order[:20]!r}, not little")
    description = interpret(_member(archive, f"{root}data.pkl"))
    folder = f"{root}data/"
    places = {
        item.filename.removeprefix(folder): Place(size=item.file_size, member=item.filename)
        for item in archive.infolist()
        if item.filename.startswith(folder) and not item.is_dir()
    }
    return TorchFile(description=description, places=places)


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        with archive.open(name) as member:
            content = member.read(_LONGEST_PICKLE + 1)
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise UnreadableError(f"its member {name} is damaged ({error})") from error
    if len(content) > _LONGEST_PICKLE:
        raise UnreadableError(f"its member {name} has more than {_LONGEST_PICKLE:,} bytes, so that it holds more than tensors")
    return content


def read_legacy_file(file: BinaryIO, size: int) -> TorchFile:
    """Read the pickles of a file as torch.save wrote it before torch 1.6; the storages stay where they are.

    Raises:
        UnreadableError: it is damaged.
    """
    file.seek(0)
    stream = io.BytesIO(file.read(_LONGEST_PICKLE))
    _, version, system, description, keys = (interpret(stream) for _ in range(5))
    if version != 1001:
        raise UnreadableError("it is of an unknown version of torch's older format")
    if dict(getattr(system, "items", ())).get("little_endian") is False:
        raise UnreadableError("its byte order is big, not little")
    kinds = _storage_kinds(description)
    places: dict[str, Place] = {}
    position = stream.tell()
    for key in keys if isinstance(keys, list) else []:
        if not isinstance(key, str) or key not in kinds:
            raise UnreadableError("it lists a storage that nothing refers to, or one of an unknown kind")
        file.seek(position)
        head = file.read(_SIZE.size)
        if len(head) < _SIZE.size:
            raise UnreadableError("it was cut off before its last storage")
        count = _SIZE.unpack(head)[0]
        length = count * ITEM_SIZES[kinds[key]]
        if not 0 <= length <= size - position - _SIZE.size:
            raise UnreadableError(f"it was cut off inside storage {key}: {length:,} bytes are announced")
        places[key] = Place(size=length, offset=position + _SIZE.size)
        position += _SIZE.size + length
    return TorchFile(description=description, places=places)


def _storage_kinds(description: object) -> dict[str, str]:
    """Return torch's class of each storage, by its key; modules lose the source text that stands with their class."""
    kinds: dict[str, str] = {}
    seen: set[int] = set()
    waiting = [description]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        match value:
            case Persistent(identifier=("storage", Global(module="torch", name=kind), str(key), *_)) if kind in ITEM_SIZES:
                kinds.setdefault(key, kind)
            case list() | tuple():
                waiting.extend(value)
            case Object(maker=maker, arguments=arguments, state=state, items=items):
                match maker:
                    case Persistent(identifier=("module", Global() as class_, *_)):  # with the source text of its class
                        value.maker = maker = class_
                waiting += [maker, arguments, state]
                waiting.extend(part for item in items for part in item)
    return kinds


def read_storage(file: BinaryIO, archive: zipfile.ZipFile | None, place: Place, target: BinaryIO) -> None:
    """Copy the bytes of a storage to the end of `target`, a piece at a time.

    Raises:
        UnreadableError: they are damaged, or fewer than announced.
    """
    left = place.size
    try:
        source: IO[bytes] = file
        if archive is not None and place.member is not None:
            source = archive.open(place.member)
        else:
            file.seek(place.offset)
        while left and (piece := source.read(min(_CHUNK, left))):
            target.write(piece)
            left -= len(piece)
        if place.member is not None and not left:
            source.read(1)  # the end of a member is where zipfile compares its checksum
    except (MemoryError, OSError):
        raise
    except Exception as error:  # as above
        raise UnreadableError(f"its member {place.member} is damaged ({error})") from error
    if left:
        raise UnreadableError(f"its bytes end {left:,} before those that are announced")
