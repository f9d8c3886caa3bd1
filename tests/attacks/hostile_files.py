"""Hostile files of weights, each read in a process of its own: `python tests/attacks/hostile_files.py [--quick] [NAME …]`.

For each file it prints one line: whether it held, the exit code, seconds, the peak memory of the largest process in MB, the
name, and the message. A file held if the exit code is the expected one (0 or 6), the message is one printable line of ours,
nothing was executed or written, and time and memory stayed within `SECONDS` and `MEGABYTES`. `--quick` leaves out what takes
long to make or to read.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle  # noqa: TID251  only dumped here, to be refused
import resource
import shutil
import struct
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bundler.errors import BundlerError
from bundler.models.checkpoints import load_weights
from bundler.models.initialization import random_state_dict
from bundler.models.registry import find_model, load_parser
from bundler.models.torch_files import LEGACY

SECONDS = 20.0  # of processor time
MEGABYTES = 2048.0

CASES: dict[str, Callable[[Path], object]] = {}
SLOW: set[str] = set()
GOOD: set[str] = set()  # files that must be read
_MODEL = "mobilenet_v3_small"


def case(
    name: str, *, good: bool = False, slow: bool = False
) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    def add(make: Callable[[Path], object]) -> Callable[[Path], object]:
        CASES[name] = make
        if good:
            GOOD.add(name)
        if slow:
            SLOW.add(name)
        return make

    return add


class Calls:
    """Pickled, it asks whoever unpickles it to call something."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


def canary(folder: Path) -> Calls:
    return Calls(os.system, f"touch {folder.parent / 'canary'}")


def weights() -> dict[str, Tensor]:
    _, variant = find_model(_MODEL)
    parser = load_parser(variant)
    pictures = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return dict(random_state_dict(lambda: parser(num_classes=10), pictures, seed=0))


_WEIGHTS: dict[str, Tensor] = {}


def state() -> dict[str, Tensor]:
    if not _WEIGHTS:
        _WEIGHTS.update(weights())
    return dict(_WEIGHTS)


FIRST, VARIANCE, LAST = "features.0.0.weight", "features.0.1.running_var", "classifier.3.weight"


# Good files, so that a reader that refuses everything does not hold

case("good.pth", good=True)(lambda path: torch.save(state(), path))
case("good_legacy.bin", good=True)(lambda path: torch.save(state(), path, _use_new_zipfile_serialization=False))
case("good_wrapped.ckpt", good=True)(
    lambda path: torch.save({"epoch": 3, "net": {f"module.{key}": value for key, value in state().items()}}, path)
)
case("good_beside_code.pth", good=True)(lambda path: torch.save({"model": state(), "hook": canary(path.parent)}, path))


@case("good_in_archive.zip", good=True)
def _(path: Path) -> None:
    content = io.BytesIO()
    torch.save(state(), content)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("run/weights/best.pt", content.getvalue())
        archive.writestr("../../traversal", "x")
        archive.writestr("/traversal", "x")


# Code in pickles

for _suffix in ("pth", "pt", "safetensors", "weights"):
    case(f"code_alone.{_suffix}")(lambda path: torch.save(canary(path.parent), path))
    case(f"code_in_plain_pickle.{_suffix}")(lambda path: path.write_bytes(pickle.dumps(canary(path.parent))))
    case(f"code_in_legacy.{_suffix}")(
        lambda path: torch.save({FIRST: canary(path.parent)}, path, _use_new_zipfile_serialization=False)
    )
case("code_as_tensor.pth")(lambda path: torch.save({**state(), FIRST: canary(path.parent)}, path))


@case("code_as_buffer.pt")
def _(path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0]._buffers["extra"] = canary(path.parent)  # type: ignore[assignment]
    torch.save({"model": model}, path)


_CALLS = {
    "reduce": b"cposix\nsystem\n(S'COMMAND'\ntR",
    "inst": b"(S'COMMAND'\niposix\nsystem\n",
    "obj": b"(cposix\nsystem\nS'COMMAND'\no",
    "newobj": b"cposix\nsystem\n(S'COMMAND'\nt\x81",
    "newobj_ex": b"cposix\nsystem\n(S'COMMAND'\nt}\x92",
    "stack_global": b"\x8c\x05posix\x8c\x06system\x93(S'COMMAND'\ntR",
    "build": b"ccollections\nOrderedDict\n)R(cposix\nsystem\nS'COMMAND'\nu(S'COMMAND'\ntb",
    "getattr": b"cbuiltins\ngetattr\n(cposix\nsystem\nS'__call__'\ntR(S'COMMAND'\ntR",
    "eval": b'cbuiltins\neval\n(S\'__import__("os").system("COMMAND")\'\ntR',
    "torch_load": b"ctorch.serialization\nload\n(S'COMMAND'\ntR",
    "hub": b"ctorch.hub\nload\n(S'COMMAND'\nS'x'\ntR",
    "jit": b"ctorch.jit\nload\n(S'COMMAND'\ntR",
    "persid": b"Pposix.system\n",
    "extension": b"\x82\x01",
    "next_buffer": b"\x97",
}


def in_zip(path: Path, program: bytes, members: Mapping[str, bytes] | None = None) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        for name, content in (members or {}).items():
            archive.writestr(f"archive/{name}", content)


for _name, _call in _CALLS.items():
    case(f"call_{_name}.pth")(
        partial(
            lambda call, path: in_zip(
                path, b"\x80\x02" + call.replace(b"COMMAND", f"touch {path.parent.parent / 'canary'}".encode()) + b"."
            ),
            _call,
        )
    )


# Pickles that take memory, time or the C stack

_PROGRAMS = {
    "deep_list": b"]" * 200_000 + b"a" * 199_999,
    "deep_tuple": b")" + b"\x85" * 300_000,
    "deep_key": b"})" + b"\x85" * 300_000 + b"K\x01s",
    "deep_dict": b"}" * 1 + b"K\x01}" * 100_000 + b"s" * 100_000,
    "deep_state": b"".join(b"ccollections\nOrderedDict\n)R" for _ in range(50_000)) + b"b" * 49_999,
    "wide_list": b"]" + b"(" + b"]" * 900_000 + b"e",
    "memo": b"]r\xff\xff\xff\x7f",
    "laughs": b")" + b"2\x86" * 60,
    "laughs_of_lists": b"](N" + b"e" + b"".join(b"](" + b"2" * 9 + b"e" for _ in range(3)),
    "long_bytes": b"\x8e" + struct.pack("<Q", 2**40) + b"x",
    "long_text": b"\x8d" + struct.pack("<Q", 2**62) + b"x",
    "long_frame": b"\x95" + struct.pack("<Q", 2**62),
    "long_integer": b"I" + b"9" * 200_000 + b"\n",
    "long_long": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "steps": b"N0" * 1_200_000 + b"N",
    "no_end": b"}" * 10,
    "empty_stack": b"s",
    "holds_itself": b"]q\x00h\x00a",
    "dict_holds_itself": b"}q\x00X\x01\x00\x00\x00ah\x00s",
}
for _name, _program in _PROGRAMS.items():
    case(f"pickle_{_name}.pt")(partial(lambda program, path: in_zip(path, b"\x80\x02" + program + b"."), _program))
case("legacy_deep.pt")(
    lambda path: path.write_bytes(
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.\x80\x02)" + b"\x85" * 300_000 + b".\x80\x02]."
    )
)


@case("legacy_cut_off.pth")
def _(path: Path) -> None:
    torch.save(state(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@case("legacy_large_storage.pth")
def _(path: Path) -> None:
    torch.save({FIRST: torch.zeros(4)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-24] + struct.pack("<q", 2**61) + bytes(16))


# Tensors that are not where they say


def integer(value: int) -> bytes:
    return (
        b"J" + struct.pack("<i", value) if -(2**31) <= value < 2**31 else b"\x8a\x09" + value.to_bytes(9, "little", signed=True)
    )


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor(
    size: tuple[int, ...], stride: tuple[int, ...], *, offset: int = 0, count: int = 16, kind: str = "FloatStorage"
) -> bytes:
    """Return the pickle of a state dict with one tensor, whose storage "0" has `count` numbers."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text("0") + text("cpu") + integer(count) + b"tQ"
    shape, steps = (b"(" + b"".join(map(integer, numbers)) + b"t" for numbers in (size, stride))
    made = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + integer(offset)
        + shape
        + steps
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )
    return b"\x80\x02}" + text(LAST) + made + b"s."


_TENSORS = {
    "stride_0": tensor((200_000, 100_000), (0, 0), count=1),
    "stride_0_larger": tensor((2_000_000, 1_000_000), (0, 0), count=1),
    "stride_0_of_the_model": tensor((1000, 1024), (0, 0), count=1),
    "negative_stride": tensor((4, 4), (-4, -1), offset=15),
    "negative_offset": tensor((4, 4), (4, 1), offset=-4),
    "negative_size": tensor((-4, 4), (4, 1)),
    "far_offset": tensor((4, 4), (4, 1), offset=10**6),
    "beyond_64_bits": tensor((2**31, 2**31), (2**31, 1), count=2**62),
    "few_bytes": tensor((1000, 1000), (1000, 1), count=10**6),
    "many_dimensions": tensor((1,) * 70, (1,) * 70),
    "unknown_type": tensor((4, 4), (4, 1), kind="NotAStorage"),
    "complex": tensor((2, 4), (4, 1), count=8, kind="ComplexFloatStorage"),
}
for _name, _program in _TENSORS.items():
    case(f"tensor_{_name}.pt")(partial(lambda program, path: in_zip(path, program, {"data/0": bytes(64)}), _program))
case("tensor_elsewhere.pth")(
    lambda path: in_zip(path, tensor((4, 4), (4, 1)).replace(text("0"), text("../../../../etc/passwd")), {"data/0": bytes(64)})
)
case("tensor_without_storage.pth")(lambda path: in_zip(path, tensor((4, 4), (4, 1))))

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    _OTHER: dict[str, Callable[[Tensor], Tensor]] = {
        "quantized": lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
        "sparse": lambda value: value.to_sparse(),
        "complex": lambda value: value.to(torch.complex64),
        "conjugate": lambda value: value.to(torch.complex64).conj(),
        "meta": lambda value: value.to("meta"),
        "integers": lambda value: value.to(torch.int32),
        "nan": lambda value: torch.full_like(value, float("nan")),
        "infinite": lambda value: torch.full_like(value, float("-inf")),
        "huge": lambda value: value * 1e37,
        "double_overflow": lambda value: value.double() * 1e300,
        "zeros": torch.zeros_like,
        "denormal": lambda value: torch.full_like(value, 1e-45),
    }
for _name, _change in _OTHER.items():
    case(f"weight_{_name}.pth")(
        partial(lambda change, path: torch.save({**state(), FIRST: change(state()[FIRST])}, path), _change)
    )
case("weight_nested.pth")(
    lambda path: torch.save({**state(), FIRST: torch.nested.nested_tensor([torch.rand(2), torch.rand(3)])}, path)
)
case("variance_negative.pth")(lambda path: torch.save({**state(), VARIANCE: -state()[VARIANCE] - 1}, path))
case("all_zeros.pth")(lambda path: torch.save({key: torch.zeros_like(value) for key, value in state().items()}, path))
case("weight_float8.pth", good=True)(lambda path: torch.save({**state(), FIRST: state()[FIRST].to(torch.float8_e5m2)}, path))
case("integer_keys.pth")(lambda path: torch.save({1: torch.rand(2), None: torch.rand(3)}, path))
case("escapes_in_keys.pth")(lambda path: torch.save({"\x1b]0;title\x07\x1b[31mred\u202e": torch.rand(2)}, path))
case("escapes_in_classes.pth")(lambda path: in_zip(path, b"\x80\x02}" + text(FIRST) + b"c\x1b[31mred\nsys\x07tem\n)Rs."))
case("no_state_dict.pth")(lambda path: torch.save([1, 2], path))
case("a_tensor.pth")(lambda path: torch.save(torch.rand(3), path))
case("many_keys.pth")(lambda path: torch.save({f"{'a.' * 50}{index}": torch.zeros(1) for index in range(2000)}, path))


# Zip archives and other containers


def deflated(size: int) -> bytes:
    """Return `size` zeros, a multiple of 16 MiB, deflated; made from one piece."""
    piece = zlib.compressobj(9, wbits=-15)
    block = piece.compress(bytes(2**24)) + piece.flush(zlib.Z_FULL_FLUSH)
    return block * (size // 2**24) + b"\x03\x00"


def zip_with(path: Path, members: Mapping[str, tuple[int, bytes, int]]) -> None:
    """Write a zip archive whose members say what they are told to: method, bytes, and size when unpacked."""
    central = b""
    with path.open("wb") as file:
        for name, (method, content, size) in members.items():
            start = file.tell()
            fields = struct.pack("<HHHHHIII", 20, 0, method, 0, 0, zlib.crc32(content), len(content), size)
            file.write(b"PK\x03\x04" + fields + struct.pack("<HH", len(name), 0) + name.encode() + content)
            central += b"PK\x01\x02\x14\x00" + fields + struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, start) + name.encode()
        start = file.tell()
        count = len(members)
        file.write(central + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, count, count, len(central), start, 0))


def stored(content: bytes) -> tuple[int, bytes, int]:
    return 0, content, len(content)


_LARGE = 240 * 2**24  # 3.75 GiB


@case("zip_bomb_in_storage.pth")
def _(path: Path) -> None:
    program = tensor((1000, 1024), (1024, 1), count=_LARGE // 4)
    zip_with(path, {"a/data.pkl": stored(program), "a/data/0": (8, deflated(_LARGE), _LARGE)})


@case("zip_bomb_in_pickle.pth")
def _(path: Path) -> None:
    zip_with(path, {"a/data.pkl": (8, deflated(_LARGE), _LARGE)})


@case("zip_bomb_in_archive.zip")
def _(path: Path) -> None:
    head = zlib.compressobj(9, wbits=-15)
    start = head.compress(b"PK\x03\x04" + bytes(22) + b"\x0a\x00\x00\x00a/data.pkl") + head.flush(zlib.Z_FULL_FLUSH)
    zip_with(path, {"best.pt": (8, start + deflated(_LARGE), _LARGE)})


@case("gzip_bomb.pth.gz")
def _(path: Path) -> None:
    start = gzip.compress(LEGACY + bytes(100))
    path.write_bytes(start + gzip.compress(bytes(2**26)) * 100)


@case("tar_bomb.tar.gz")
def _(path: Path) -> None:
    member = tarfile.TarInfo("model.pth")
    member.size = 100 * 2**26
    path.write_bytes(gzip.compress(member.tobuf()) + gzip.compress(bytes(2**26)) * 100)


@case("tar_long_header.tar")
def _(path: Path) -> None:
    member = tarfile.TarInfo("pax")
    member.type, member.size = tarfile.XHDTYPE, 2**40
    path.write_bytes(member.tobuf() + bytes(2048))


@case("tar_links.tar")
def _(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name, kind in (("model.pth", tarfile.SYMTYPE), ("b.pth", tarfile.LNKTYPE), ("c.pth", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)


@case("tar_of_torch_0.1.pth")
def _(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors", "../traversal"):
            content = pickle.dumps(canary(path.parent))
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@case("archive_with_two.zip")
def _(path: Path) -> None:
    content = io.BytesIO()
    torch.save({FIRST: torch.zeros(1)}, content)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a.pth", "\x1b[31mb.pth"):
            archive.writestr(name, content.getvalue())


@case("zip_two_pickles.pth")
def _(path: Path) -> None:
    torch.save(state(), path)
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(archive.namelist()[0], pickle.dumps(canary(path.parent)))


@case("zip_many_members.pth", slow=True)
def _(path: Path) -> None:
    zip_with(path, {f"a/{index}": stored(b"") for index in range(60_000)} | {"a/data.pkl": stored(b"N.")})


@case("zip_wrong_checksum.pth")
def _(path: Path) -> None:
    torch.save(state(), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


for _share in (1, 30, 1000, -1000, -1):

    def _cut(path: Path, share: int = _share) -> None:
        torch.save(state(), path)
        path.write_bytes(path.read_bytes()[:share])

    case(f"zip_cut_at_{_share}.pth")(_cut)


@case("torchscript.pt")
def _(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), str(path))


# safetensors


def safetensors(path: Path, header: object, content: bytes = b"", length: int | None = None) -> None:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head) if length is None else length) + head + content)


def entry(shape: list[int], start: int, end: int, kind: str = "F32") -> dict[str, object]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


ONE = entry([1], 0, 4)
_HEADERS: dict[str, tuple[object, bytes, int | None]] = {
    "endless": (b"{}", b"", 2**60),
    "long": (b"{}", b"", 99_999_999),
    "nested": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", None),
    "no_json": (b"{'a'", b"", None),
    "twice": (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        bytes(8),
        None,
    ),
    "overlap": ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12), None),
    "hole": ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12), None),
    "large_shape": ({"a": entry([2**40, 2**40], 0, 4)}, bytes(4), None),
    "negative": ({"a": entry([-1], 0, 4)}, bytes(4), None),
    "beyond": ({"a": entry([1000], 0, 4000)}, bytes(4), None),
    "no_numbers": ({"a": entry([0, 2**62], 0, 0)}, b"", None),
    "type": ({"a": entry([1], 0, 4, "F3000")}, bytes(4), None),
    "strings": ({"a": {"dtype": 5, "shape": "x", "data_offsets": None}}, b"", None),
    "infinite": (b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}', bytes(4), None),
}
for _name, (_header, _content, _length) in _HEADERS.items():
    case(f"header_{_name}.safetensors")(
        partial(lambda header, content, length, path: safetensors(path, header, content, length), _header, _content, _length)
    )


# Darknet, and files that are something else


def darknet(path: Path, content: bytes, version: tuple[int, int, int] = (0, 2, 5)) -> None:
    path.write_bytes(struct.pack("<iii", *version) + struct.pack("<q", 2**62) + content)


for _name, _version, _size in (
    ("short", (0, 2, 5), 100),
    ("odd", (0, 2, 5), 103),
    ("minus", (-1, -1, -1), 99),
    ("v99", (0, 2**31 - 1, 0), 9),
):
    case(f"darknet_{_name}.weights")(partial(lambda version, size, path: darknet(path, bytes(size), version), _version, _size))


def sparse(path: Path, head: bytes = b"") -> None:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(40 * 2**30)


for _suffix in ("pth", "safetensors", "weights", "zip"):
    case(f"sparse_40G.{_suffix}")(sparse)
case("sparse_40G_darknet.weights")(lambda path: sparse(path, struct.pack("<iiiq", 0, 2, 5, 0)))
case("sparse_40G_safetensors.pth")(lambda path: sparse(path, struct.pack("<Q", 2) + b"{}"))
case("sparse_40G_legacy.pth")(lambda path: sparse(path, LEGACY + b"\x80\x02M\xe9\x03."))


@case("sparse_20G_beside_weights.pth")
def _(path: Path) -> None:
    torch.save(state(), path)
    content = path.read_bytes()
    with path.open("wb") as file:  # a zip archive may have anything before its first member
        file.truncate(20 * 2**30)
        file.seek(20 * 2**30)
        file.write(content)


_ELSE = {
    "empty.pth": b"",
    "one_byte.pth": b"P",
    "git_lfs.pth": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 46830571\n",
    "page.pth": b"<!DOCTYPE html><html><title>404</title></html>",
    "answer.pt": b'{"error": "not found"}',
    "escapes.pth": b"\x1b[31mred\x1b]0;title\x07",
    "zeros.pth": bytes(100_000),
    "random.pth": bytes(range(1, 256)) * 100,
    "keras.h5": b"\x89HDF\r\n\x1a\n" + bytes(1000),
    "array.npy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}" + pickle.dumps([1]),
    "graph.onnx": b"\x08\x09\x12\x07pytorch\x1a\x052.0.0" + bytes(200),
    "zstd.tar.zst": b"\x28\xb5\x2f\xfd" + bytes(100),
    "damaged.gz": b"\x1f\x8b\x08\x00" + bytes(100),
    "damaged.tar.xz": b"\xfd7zXZ\x00" + bytes(100),
}
for _name, _bytes in _ELSE.items():
    case(_name)(partial(lambda content, path: path.write_bytes(content), _bytes))
case("fifo.pth")(os.mkfifo)
case("device.pth")(lambda path: path.symlink_to("/dev/zero"))
case("endless_link.pth")(lambda path: path.symlink_to(path.name))
case("folder.pth")(lambda path: path.mkdir())


# Running them


def read(path: Path) -> tuple[int, str]:
    """Read a file as `bundler bundle` does, and return the exit code and what is said."""
    _, variant = find_model("yolov3" if path.suffix == ".weights" else _MODEL)
    parser = load_parser(variant)
    try:
        loaded = load_weights(str(path), variant, parser=parser, num_classes=None, pictures=_no_pictures, seed=0)
    except BundlerError as error:
        return error.exit_code, f"{error.message}  next: {error.next_step}"
    parser(weights=loaded.state_dict, num_classes=loaded.num_classes)
    return 0, "; ".join(loaded.notes) or "read"


def _no_pictures() -> Any:
    raise AssertionError("only random weights need pictures")


def attempt(path: Path) -> tuple[int, str, float, float]:
    """Read a file in a process of its own; return the exit code, the message, processor seconds and peak memory in MB."""
    answer, said = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(answer)
        resource.setrlimit(resource.RLIMIT_CPU, (int(3 * SECONDS), int(3 * SECONDS)))
        try:
            code, message = read(path)
        except BaseException as error:  # noqa: BLE001  what was not foreseen is what is looked for
            code, message = 1, f"not foreseen: {type(error).__name__}: {error}"
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        own = resource.getrusage(resource.RUSAGE_SELF)
        used = children.ru_utime + children.ru_stime + own.ru_utime + own.ru_stime
        with os.fdopen(said, "w") as pipe:
            json.dump([code, message, used, max(children.ru_maxrss, own.ru_maxrss) / 1024], pipe)
        os._exit(0)
    os.close(said)
    with os.fdopen(answer) as pipe:
        text_ = pipe.read()
    _, status = os.waitpid(process, 0)
    if not text_:
        return 128 + os.waitstatus_to_exitcode(status), "the process died", 0.0, 0.0
    code, message, used, peak = json.loads(text_)
    return code, message, used, peak


def results(names: list[str], folder: Path) -> Iterator[tuple[str, bool, int, str, float, float]]:
    """Make and read the files, and yield for each: name, whether it held, exit code, message, seconds, MB."""
    for name in names:
        inside = folder / "files"
        inside.mkdir()
        CASES[name](inside / name)
        before = sorted(folder.rglob("*"))
        code, message, seconds, peak = attempt(inside / name)
        untouched = sorted(folder.rglob("*")) == before and not (folder.parent / "traversal").exists()
        held = (
            code == (0 if name in GOOD else 6)
            and message.isprintable()
            and untouched
            and seconds < SECONDS
            and peak < MEGABYTES
        )
        yield name, held, code, message if untouched else f"FILES WERE WRITTEN; {message}", seconds, peak
        shutil.rmtree(inside)


def main(arguments: list[str]) -> int:
    torch.set_num_threads(1)
    quick = "--quick" in arguments
    words = [word for word in arguments if not word.startswith("--")]
    names = [name for name in CASES if not words or any(word in name for word in words)]
    names = [name for name in names if not (quick and name in SLOW)]
    state()
    failed = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "inner").mkdir()
        for name, held, code, message, seconds, peak in results(names, Path(folder) / "inner"):
            verdict = "held" if held else "NOT HELD"
            sys.stdout.write(f"{verdict:8} {code:3} {seconds:5.1f} s {peak:6.0f} MB  {name:32} {message[:160]}\n")
            sys.stdout.flush()
            if not held:
                failed.append(name)
    took = time.monotonic() - started
    counts = f"{len(names) - len(failed)} held, {len(failed)} did not {' '.join(failed)}"
    sys.stdout.write(f"{len(names)} files in {took:.0f} s: {counts}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.exit(main(sys.argv[1:]))
