"""The two containers that torch.save writes: a zip archive, and before torch 1.6 a sequence of pickles and storages.

Runs in the child process (bundler/models/checkpoint_reader.py): only the standard library is needed.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, BinaryIO

from bundler.models.pickle_interpreter import Global, Object, Persistent, UnreadableError, interpret

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
    """Where the `size` bytes of a storage are: in a member of the zip archive, or at an offset in the file."""

    size: int
    member: str | None = None
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class TorchFile:
    """The records of a file's pickle, and the places of the storages that it refers to, by key."""

    description: object
    places: Mapping[str, Place]


def is_legacy(head: bytes) -> bool:
    """Return whether `head` begins with the magic number of torch.save before torch 1.6."""
    return _LEGACY.match(head) is not None


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
    """Open a zip archive.

    Raises:
        UnreadableError: it is not a zip archive, or damaged.
    """
    try:
        archive = zipfile.ZipFile(file)
    except Exception as error:  # zipfile has no common type for what it finds in damaged archives
        raise UnreadableError(f"its zip archive is damaged or truncated ({error})") from error
    if len(archive.infolist()) > _MOST_MEMBERS:
        raise UnreadableError(f"its zip archive has more than {_MOST_MEMBERS:,} members")
    return archive


def read_torch_zip(archive: zipfile.ZipFile) -> TorchFile:
    """Read the pickle of a zip archive that torch.save wrote; storages are only located.

    Raises:
        UnreadableError: it is damaged.
    """
    names = archive.namelist()
    roots = [name.removesuffix("data.pkl") for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise UnreadableError(f"it has {len(roots) or 'no'} members data.pkl; torch.save writes one")
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
        raise UnreadableError(f"its member {name} has more than {_LONGEST_PICKLE:,} bytes, the limit for a pickle")
    return content


def read_legacy_file(file: BinaryIO, size: int) -> TorchFile:
    """Read the pickles of a file that torch.save wrote before torch 1.6; storages are only located.

    Raises:
        UnreadableError: it is damaged.
    """
    file.seek(0)
    stream = io.BytesIO(file.read(_LONGEST_PICKLE))
    _, version, system, description, keys = (interpret(stream) for _ in range(5))
    if version != 1001:
        raise UnreadableError(f"its version of torch's older format is {str(version)[:20]}, not 1001")
    if dict(getattr(system, "items", ())).get("little_endian") is False:
        raise UnreadableError("its byte order is big, not little")
    kinds = _storage_kinds(description)
    places: dict[str, Place] = {}
    position = stream.tell()
    for key in keys if isinstance(keys, list) else []:
        if not isinstance(key, str) or key not in kinds:
            raise UnreadableError("it lists a storage without a tensor, or of an unknown type")
        file.seek(position)
        head = file.read(_SIZE.size)
        if len(head) < _SIZE.size:
            raise UnreadableError("it is truncated before its last storage")
        count = _SIZE.unpack(head)[0]
        length = count * ITEM_SIZES[kinds[key]]
        if not 0 <= length <= size - position - _SIZE.size:
            raise UnreadableError(f"it is truncated within storage {key}, which should have {length:,} bytes")
        places[key] = Place(size=length, offset=position + _SIZE.size)
        position += _SIZE.size + length
    return TorchFile(description=description, places=places)


def _storage_kinds(description: object) -> dict[str, str]:
    """Return torch's class name of each storage, by its key; source code stored with a module's class is dropped."""
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
    """Copy the bytes of a storage to the current position of `target`, in chunks.

    Raises:
        UnreadableError: they are damaged or truncated.
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
            source.read(1)  # zipfile checks the CRC at the end of a member
    except (MemoryError, OSError):
        raise
    except Exception as error:  # as above
        raise UnreadableError(f"its member {place.member} is damaged ({error})") from error
    if left:
        raise UnreadableError(f"a storage is truncated: {left:,} of {place.size:,} bytes are missing")
