"""Checkpoints of whole objects, written by torch.save with classes that cannot be imported afterwards."""

from __future__ import annotations

import builtins
import importlib
import io
import json
import os
import pickletools
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bundler.errors import CheckpointError
from bundler.models import module_tensors
from bundler.models.checkpoint_file import CheckpointFile
from bundler.models.checkpoint_reader import answer
from bundler.models.module_tensors import preferred
from bundler.models.pickle_interpreter import UnreadableError

VENDOR = """
import torch
from torch import nn

print("vendor code runs")


class Conv(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = nn.SiLU()
        self.register_buffer("scratch", torch.ones(3), persistent=False)


class Detect(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("anchors", torch.arange(12.0).view(3, 2, 2))
        self.register_buffer("nothing", None)
        self.m = nn.ModuleList([nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 1, bias=False)])
        self.removed = None
        self.helper = Helper()


class Helper:
    __slots__ = ("left", "right")

    def __init__(self):
        self.left, self.right = {1: {"a": (1, 2.5, None)}}, {frozenset({3}), b"bytes"}


class DetectionModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(Conv(2, 4), Conv(4, 4), Detect())
        self.scale = nn.Parameter(torch.randn(()))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.yaml = {"nc": 2, "anchors": [[1, 2], [3, 4]], "backbone": [[-1, 1, "Conv", [64, 6, 2, 2]]]}
"""


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """Classes of another's package; what is read while they are there proves nothing, so `hidden` removes them."""
    folder = tmp_path_factory.mktemp("vendor")
    (folder / "vendor_yolo.py").write_text(VENDOR)
    sys.path.insert(0, str(folder))
    yield importlib.import_module("vendor_yolo")
    sys.path.remove(str(folder))
    sys.modules.pop("vendor_yolo", None)


@pytest.fixture
def saved(vendor: ModuleType) -> Iterator[Callable[..., bytes]]:
    """Return the file that torch.save writes; afterwards the vendor's classes cannot be imported."""
    path = sys.path.copy()

    def save(payload: object, **options: Any) -> bytes:
        file = io.BytesIO()
        torch.save(payload, file, **options)
        sys.modules.pop("vendor_yolo", None)
        sys.path[:] = [entry for entry in path if "vendor" not in Path(entry).name]
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("vendor_yolo")
        return file.getvalue()

    yield save
    sys.path[:] = path
    sys.modules["vendor_yolo"] = vendor


@pytest.fixture
def detector(vendor: ModuleType) -> nn.Module:
    model: nn.Module = vendor.DetectionModel()
    for value in model.state_dict().values():
        value.copy_(torch.randn(value.shape) * 3 if value.is_floating_point() else torch.tensor(12345))
    return model


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read_here(task: Mapping[str, Any], _: tuple[int, ...]) -> dict[str, Any]:
    """Do in this process what is otherwise done in one of its own, which takes longer to start than hundreds of examples."""
    own = {key: os.dup(task[key]) for key in ("file", "target") if key in task}
    found: dict[str, Any] = json.loads(json.dumps(answer({**task, **own})))
    if "unreadable" in found:
        raise UnreadableError(found["unreadable"])
    return found


def read(content: bytes) -> dict[str, Tensor]:
    """Return the tensors of what YOLOv5's own loader would take."""
    Path("mine.pt").write_bytes(content)
    with CheckpointFile(Path("mine.pt"), model_bytes=2**20, reader=read_here) as file:
        found = preferred(file.candidates)
        if found is None:
            raise CheckpointError("mine.pt holds nothing", next_step="")
        return file.load(found.tensors)


def assert_same(loaded: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(loaded) == list(expected)
    for key, value in expected.items():
        assert loaded[key].dtype == value.dtype
        assert torch.equal(loaded[key], value)


def bytes_of(payload: object) -> bytes:
    file = io.BytesIO()
    torch.save(payload, file)
    return file.getvalue()


def members_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive_of(members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def with_pickle(program: bytes, content: bytes) -> bytes:
    """Return a checkpoint with another pickle, and checksums that agree with it."""
    return archive_of({**members_of(content), "archive/data.pkl": program})


# Whole models


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_model_of_classes_that_are_not_there(
    protocol: int, detector: nn.Module, saved: Callable[..., bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = detector.state_dict()
    content = saved({"epoch": -1, "best_fitness": None, "model": detector, "ema": None}, pickle_protocol=protocol)
    capsys.readouterr()
    assert_same(read(content), expected)
    assert "model.2.m.0.bias" in expected
    assert not any("scratch" in key for key in expected)
    assert "vendor_yolo" not in sys.modules
    assert capsys.readouterr().out == ""


def test_a_model_without_a_wrapper(detector: nn.Module, saved: Callable[..., bytes]) -> None:
    expected = detector.state_dict()
    assert_same(read(saved(detector)), expected)


def test_a_repacked_archive_with_compression_and_another_root(detector: nn.Module, saved: Callable[..., bytes]) -> None:
    expected = detector.state_dict()
    members = {name.replace("archive/", "yolov5s/", 1): value for name, value in members_of(saved(detector)).items()}
    assert_same(read(archive_of(members, zipfile.ZIP_DEFLATED)), expected)


def test_the_average_goes_before_the_model() -> None:
    model, ema = nn.Linear(2, 3), nn.Linear(2, 3)
    assert_same(read(bytes_of({"model": model, "ema": ema})), ema.state_dict())
    assert_same(read(bytes_of({"model": model, "ema": None})), model.state_dict())
    assert_same(read(bytes_of({"model": model, "ema": ema.state_dict()})), model.state_dict())


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda state_dict: state_dict, id="bare"),
        pytest.param(dict, id="a dict"),
        pytest.param(lambda state_dict: {"epoch": 3, "model": state_dict}, id="model"),
        pytest.param(lambda state_dict: {"state_dict": state_dict, "args": Path("x")}, id="state_dict"),
        pytest.param(lambda state_dict: OrderedDict(model_state_dict=state_dict), id="model_state_dict"),
    ],
)
def test_state_dicts(wrap: Callable[[Any], Any]) -> None:
    expected = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).state_dict()
    assert_same(read(bytes_of(wrap(expected))), expected)


@pytest.mark.parametrize(
    "payload",
    [
        [1, 2],
        {},
        7,
        None,
        "text",
        torch.ones(3),
        {"model": None},
        {"state_dict": {"a": 1.0}},
        nn.ReLU(),
        {"model": nn.Sequential()},
    ],
)
def test_a_file_without_tensors_of_a_model_is_refused(payload: object) -> None:
    with pytest.raises(CheckpointError, match=r"mine\.pt holds nothing"):
        read(bytes_of(payload))


# Tensors


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    ],
)
def test_types_stay_what_they_are(dtype: torch.dtype) -> None:
    expected = {
        "a": torch.tensor([[0, 1, 1], [100, 0, 7]]).to(dtype),
        "b": torch.tensor(1).to(dtype),
        "c": torch.ones(0, 2).to(dtype),
    }
    assert_same(read(bytes_of({"model": expected})), expected)


def test_strided_tensors() -> None:
    whole = torch.arange(120.0).reshape(2, 3, 4, 5)
    expected = {
        "transposed": whole.permute(3, 1, 0, 2),
        "every second": whole[:, ::2, 1:, 1::3],
        "channels last": whole.clone(memory_format=torch.channels_last),
        "expanded": torch.ones(3, 1).expand(3, 4),
        "one": whole[1, 2, 3, 4],
        "last row": whole[1, 2, 3:],
        "half": whole.half().permute(3, 2, 1, 0),
    }
    loaded = read(bytes_of(expected))
    assert_same(loaded, expected)
    assert loaded["transposed"].stride() == expected["transposed"].stride()


def test_shared_storages_are_shared() -> None:
    whole = torch.arange(10.0)
    loaded = read(bytes_of({"first": whole[:6], "second": whole[4:], "all": whole}))
    assert_same(loaded, {"first": whole[:6], "second": whole[4:], "all": whole})
    loaded["first"][5] = -1
    assert loaded["second"][1] == loaded["all"][5] == -1


def test_tied_parameters_and_modules_have_all_their_names() -> None:
    model = nn.Module()
    model.first, model.second = nn.Linear(3, 3), nn.Linear(3, 3)
    model.second.weight = model.first.weight
    model.again = model.second
    loaded = read(bytes_of({"model": model}))
    assert_same(loaded, model.state_dict())
    assert loaded["first.weight"].data_ptr() == loaded["second.weight"].data_ptr() == loaded["again.weight"].data_ptr()


def test_parameters_with_attributes() -> None:
    model = nn.Linear(2, 2)
    model.weight.note = {"anything": Path("x")}  # type: ignore[attr-defined]
    assert_same(read(bytes_of(model)), model.state_dict())


def test_a_negated_view_is_refused_rather_than_read_with_the_wrong_sign() -> None:
    negated = torch.complex(torch.ones(2), torch.ones(2)).conj().imag
    assert negated.is_neg()
    with pytest.raises(CheckpointError, match=r"mine\.pt cannot be used: a cannot be read: it is stored negated"):
        read(bytes_of({"model": {"a": negated}}))


# Code that would run


class Runs:
    """Pickled, it asks whoever unpickles it to call something."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


@pytest.fixture(params=["os.system", "eval", "exec", "open", "touch"])
def attack(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[object, Path]:
    marker = tmp_path / "marker"
    calls: dict[str, tuple[object, ...]] = {
        "os.system": (os.system, f"touch {marker}"),
        "eval": (builtins.eval, f"open({str(marker)!r}, 'w').close()"),
        "exec": (builtins.exec, f"open({str(marker)!r}, 'w').close()"),
        "open": (open, str(marker), "w"),
        "touch": (Path.touch, marker),
    }
    return Runs(*calls[request.param]), marker


def test_the_attacks_are_real(attack: tuple[Any, Path]) -> None:
    function, *arguments = attack[0].call
    if function is open:
        function(*arguments).close()
    else:
        function(*arguments)
    assert attack[1].exists()


def test_code_beside_the_tensors_does_not_run(attack: tuple[object, Path]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.hook = attack[0]  # type: ignore[assignment]
    expected = model.state_dict()
    assert_same(read(bytes_of({"date": attack[0], "model": model, "optimizer": [attack[0]]})), expected)
    assert not attack[1].exists()


@pytest.mark.parametrize("kind", ["_parameters", "_buffers", "_modules"])
def test_code_in_place_of_a_tensor_is_refused_by_name(kind: str, attack: tuple[Any, Path]) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    getattr(model[0], kind)["extra"] = attack[0]
    with pytest.raises(CheckpointError, match=r"mine\.pt cannot be used: 0\.extra is made by .*, which is not executed"):
        read(bytes_of({"model": model}))
    assert not attack[1].exists()


@pytest.mark.parametrize(
    "wrap", [lambda attack: attack, lambda attack: {"model": attack}, lambda attack: {"model": {"a": attack}}]
)
def test_code_in_place_of_a_model_is_refused(wrap: Callable[[object], object], attack: tuple[object, Path]) -> None:
    with pytest.raises(CheckpointError, match="holds nothing"):
        read(bytes_of(wrap(attack[0])))
    assert not attack[1].exists()


def pickled_call(marker: Path, call: bytes) -> bytes:
    return b"\x80\x02" + call.replace(b"COMMAND", f"touch {marker}".encode()) + b"."


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(b"cos\nsystem\n(S'COMMAND'\ntR", id="REDUCE"),
        pytest.param(b"(S'COMMAND'\nios\nsystem\n", id="INST"),
        pytest.param(b"(cos\nsystem\nS'COMMAND'\no", id="OBJ"),
        pytest.param(b"cos\nsystem\n(S'COMMAND'\nt\x81", id="NEWOBJ"),
        pytest.param(b"cos\nsystem\n(S'COMMAND'\nt}\x92", id="NEWOBJ_EX"),
        pytest.param(b"\x8c\x02os\x8c\x06system\x93(S'COMMAND'\ntR", id="STACK_GLOBAL"),
        pytest.param(b"cbuiltins\ngetattr\n(cos\nsystem\nS'__call__'\ntR(S'COMMAND'\ntR", id="getattr"),
        pytest.param(b"ccollections\nOrderedDict\n)R(cos\nsystem\nS'COMMAND'\nu(S'COMMAND'\ntb", id="BUILD"),
        pytest.param(b"Pos.system\n", id="PERSID"),
        pytest.param(b"cos\nsystem\nQ", id="BINPERSID"),
    ],
)
def test_no_step_of_a_pickle_calls_anything(call: bytes, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    marker = tmp_path / "marker"
    content = with_pickle(pickled_call(marker, call), bytes_of({}))
    with pytest.raises(CheckpointError):
        read(content)
    assert not marker.exists()
    if request.node.callspec.id in {"REDUCE", "INST", "OBJ", "STACK_GLOBAL", "getattr"}:
        torch.load(io.BytesIO(content), weights_only=False)  # it is a pickle that runs code
        assert marker.exists()


@pytest.mark.parametrize("step", [b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00", b"\x97", b"N\x98"])
def test_steps_that_torch_does_not_write_are_refused(step: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"its pickle is malformed \(the opcode [A-Z0-9_]+ is not supported"):
        read(with_pickle(b"\x80\x02" + step + b".", bytes_of({})))


# Files that are not what they should be

SMALL = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(4, dtype=torch.int64)}
MODEL = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
WHOLE = bytes_of({"model": MODEL})
PROGRAM = members_of(WHOLE)["archive/data.pkl"]


def changed(**members: bytes | None) -> bytes:
    """Return SMALL's file with members replaced, or left out."""
    original = members_of(bytes_of({"state_dict": SMALL}))
    named = {f"archive/{name.replace('__', '/').replace('_pkl', '.pkl')}": content for name, content in members.items()}
    return archive_of({name: content for name, content in {**original, **named}.items() if content is not None})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "is empty (0 bytes)", id="empty"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer", id="text"),
        pytest.param(WHOLE[:-100], "its zip archive is damaged or truncated", id="cut off"),
        pytest.param(archive_of({}), "contains no checkpoint", id="empty zip"),
        pytest.param(archive_of({"a/data.pkl": b"N.", "b/data.pkl": b"N."}), "2 members data.pkl", id="two roots"),
        pytest.param(changed(data_pkl=None), "contains no checkpoint", id="no pickle"),
        pytest.param(changed(byteorder=b"big"), "byte order is b'big'", id="big-endian"),
        pytest.param(changed(data__0=None), "a cannot be read: its storage data/0 is missing", id="no storage"),
        pytest.param(
            changed(data__1=bytes(31)),
            "its storage data/1 has 31 bytes, not 4 elements of 8",
            id="short storage",
        ),
        pytest.param(changed(data__0=b""), "its storage data/0 has 0 bytes, not 6 elements of 4", id="empty storage"),
        pytest.param(changed(data_pkl=b""), "its pickle is malformed", id="empty pickle"),
        pytest.param(changed(data_pkl=b"\x80\x02}q\x00"), "its pickle is malformed", id="pickle without an end"),
    ],
)
def test_a_damaged_file_says_what_is_wrong(content: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        read(content)
    assert "mine.pt" in refusal.value.message
    assert reason in refusal.value.message
    assert refusal.value.next_step
    assert refusal.value.exit_code == 6


def test_an_escape_that_python_warns_of_is_refused() -> None:
    with pytest.raises(CheckpointError, match="its pickle is malformed"):
        read(changed(data_pkl=b"S'\\q'\n."))  # warnings are errors here


def test_files_without_a_byte_order_are_little_endian() -> None:
    assert_same(read(changed(byteorder=None)), SMALL)  # torch wrote none before 2.1


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_file_from_before_torch_1_6(protocol: int, detector: nn.Module, saved: Callable[..., bytes]) -> None:
    whole = torch.arange(10.0)
    expected = {"a": whole[2:6], "b": whole.reshape(2, 5).T, "c": torch.ones(3, dtype=torch.int64), "d": torch.ones(2).half()}
    file = io.BytesIO()
    torch.save(expected, file, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    assert_same(read(file.getvalue()), expected)
    own = detector.state_dict()
    assert_same(read(saved({"model": detector}, _use_new_zipfile_serialization=False)), own)


@pytest.mark.parametrize("left", [100, 400, -30, -1])
def test_a_file_from_before_torch_1_6_that_was_cut_off(left: int) -> None:
    file = io.BytesIO()
    torch.save(SMALL, file, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"truncated|malformed"):
        read(file.getvalue()[:left])


def test_a_pickle_that_unpacks_to_too_much_is_refused_before_it_is() -> None:
    with pytest.raises(CheckpointError, match=r"member archive/data\.pkl has more than 67,108,864 bytes"):
        read(archive_of({"archive/data.pkl": bytes(2**27)}, zipfile.ZIP_DEFLATED))


def test_tensors_that_take_more_than_the_model_are_refused_before_they_are_read() -> None:
    with pytest.raises(CheckpointError, match=r"its tensors need [\d,]+ bytes; the limit for this model is [\d,]+"):
        read(bytes_of({"a": torch.zeros(1).expand(2**14, 2**13)}))


def test_an_encrypted_archive_is_refused() -> None:
    content = bytearray(archive_of({"archive/data.pkl": b"N."}))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags] |= 1
    with pytest.raises(CheckpointError, match=r"its member archive/data\.pkl is damaged .*encrypted"):
        read(bytes(content))


def tensor_program(
    *,
    size: str = "(K\x02K\x03t",
    stride: str = "(K\x03K\x01t",
    offset: str = "K\x00",
    count: str = "K\x06",
    kind: str = "ctorch\nFloatStorage\n",
    key: str = "X\x01\x00\x00\x000",
) -> bytes:
    """Return a pickle of {"a": tensor} that is, unless told otherwise, SMALL["a"]."""
    storage = f"(X\x07\x00\x00\x00storage{kind}{key}X\x03\x00\x00\x00cpu{count}tQ"
    tensor = f"ctorch._utils\n_rebuild_tensor_v2\n({storage}{offset}{size}{stride}\x89NtR"
    return f"\x80\x02}}X\x01\x00\x00\x00a{tensor}s.".encode("latin-1")


def test_the_handwritten_pickle_is_a_tensor() -> None:
    assert_same(read(changed(data_pkl=tensor_program())), {"a": SMALL["a"]})


LARGE = "\x8a\x05\x00\x00\x00\x00\x10"  # 2^36
HUGE = "\x8b\x00\x10\x00\x00" + "\x00" * 4095 + "\x01"  # has too many digits to be printed
NEGATIVE = "J\xff\xff\xff\xff"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"offset": "K\x01"}, "its last element has the index 6 in a storage of 6"),
        ({"size": "(K\x03K\x03t"}, "its last element has the index 8 in a storage of 6"),
        ({"stride": "(K\x04K\x01t"}, "its last element has the index 6 in a storage of 6"),
        ({"count": "K\x05"}, "its last element has the index 5 in a storage of 5"),
        ({"count": "K\x07"}, "has 24 bytes, not 7 elements of 4"),
        ({"kind": "ctorch\nDoubleStorage\n"}, "has 24 bytes, not 6 elements of 8"),
        ({"kind": "ctorch\nComplexFloatStorage\n"}, "it is complex"),
        ({"kind": "cos\nsystem\n"}, "storage is of an unknown type"),
        ({"kind": "cmine\nFloatStorage\n"}, "storage is of an unknown type"),
        ({"key": "K\x00"}, "storage is of an unknown type"),
        ({"key": "X\x09\x00\x00\x00../../etc"}, "data/../../etc is missing"),
        ({"size": "(K\x02t"}, "1 dimensions and 2 strides"),
        ({"size": "(" + "K\x01" * 17 + "t", "stride": "(" + "K\x01" * 17 + "t"}, "17 dimensions and 17 strides"),
        ({"size": f"({LARGE}K\x01t", "stride": "(K\x00K\x00t"}, "is not an integer from 0 to"),
        ({"size": "(J\xff\xff\xff\x7fK\x03t", "stride": "(K\x00K\x00t"}, "would need more than"),
        ({"size": "(K\x00J\xff\xff\xff\x7fJ\xff\xff\xff\x7ft", "stride": "(K\x00K\x00K\x00t"}, "would need more than"),
        *(
            ({field: value}, "is not an integer from 0 to")
            for number in (NEGATIVE, HUGE, "\x88", "N", "X\x00\x00\x00\x00", "G\x3f\xf0\x00\x00\x00\x00\x00\x00")
            for field, value in {
                "offset": number,
                "count": number,
                "size": f"({number}K\x01t",
                "stride": f"({number}K\x01t",
            }.items()
        ),
    ],
)
def test_a_tensor_that_does_not_lie_in_its_storage_is_refused(fields: dict[str, str], reason: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        read(changed(data_pkl=tensor_program(**fields)))
    assert refusal.value.message.startswith("the checkpoint mine.pt cannot be used: a cannot be read: ")
    assert reason in refusal.value.message


def test_messages_quote_no_control_characters() -> None:
    with pytest.raises(CheckpointError, match=r"data/\\x1b\[31m red is missing") as refusal:
        read(changed(data_pkl=tensor_program(key="X\x09\x00\x00\x00\x1b[31m red")))
    assert refusal.value.message.isprintable()


# Pickles that would take all memory, all time, or the C stack


def test_a_large_memo_index_takes_no_memory() -> None:
    with pytest.raises(CheckpointError, match="holds nothing"):
        read(with_pickle(b"\x80\x02Nr\xff\xff\xff\xff.", WHOLE))  # pickle.Unpickler would allocate 64 GiB


def test_a_string_longer_than_the_file_takes_no_memory() -> None:
    with pytest.raises(CheckpointError, match="its pickle is malformed"):
        read(with_pickle(b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"abc.", WHOLE))


@pytest.mark.parametrize("nest", [b"\x85", b"\x85" * 3 + b"\x86"])
def test_deep_nesting_as_a_key_is_survived(nest: bytes) -> None:
    """pickle.Unpickler would die of it: hashing a tuple recurses in C without a limit."""
    start = b"\x80\x02})" if len(nest) == 1 else b"\x80\x02}" + b")" * 200_001
    with pytest.raises(CheckpointError):
        read(with_pickle(start + nest * 200_000 + b"K\x01s.", WHOLE))


def test_too_many_steps_are_refused() -> None:
    with pytest.raises(CheckpointError, match="more than 2,000,000 opcodes"):
        read(with_pickle(b"\x80\x02" + b"N0" * 1_000_001 + b"N.", WHOLE))


def chained(depth: int, children: tuple[str, ...]) -> nn.Module:
    module: nn.Module = nn.Linear(1, 1)
    for _ in range(depth):
        parent = nn.Module()
        for name in children:
            parent.add_module(name, module)
        module = parent
    return module


def test_deep_modules_are_read_up_to_a_limit() -> None:
    module = chained(150, ("m",))  # deeper than that torch.save itself recurses too far
    assert list(read(bytes_of(module))) == ["m." * 150 + "weight", "m." * 150 + "bias"]
    with pytest.raises(CheckpointError, match=r"nested too deeply, in module\.module"):
        read(bytes_of(chained(150, ("module",))))


def test_modules_that_hold_each_other_exponentially_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_tensors, "MOST_STEPS", 100_000)
    with pytest.raises(CheckpointError, match="refer to each other too often"):
        read(bytes_of(chained(60, ("a", "b"))))


def test_a_module_that_holds_itself() -> None:
    module = nn.Module()
    module.linear = nn.Linear(1, 1)
    module._modules["itself"] = module
    with pytest.raises(CheckpointError, match=r"nested too deeply, in itself\.itself"):
        read(bytes_of(module))


# Arbitrary damage


def check_right_or_refused(content: bytes) -> None:
    try:
        loaded = read(content)
    except CheckpointError:
        return
    assert_same(loaded, MODEL.state_dict())


@given(positions=st.lists(st.integers(0, len(WHOLE) - 1), min_size=1, max_size=4), mask=st.integers(1, 255))
def test_flipped_bytes_give_the_right_tensors_or_a_refusal(positions: list[int], mask: int) -> None:
    content = bytearray(WHOLE)
    for position in positions:
        content[position] ^= mask
    check_right_or_refused(bytes(content))


@given(start=st.integers(0, len(WHOLE)), length=st.integers(0, 600))
def test_cut_bytes_give_the_right_tensors_or_a_refusal(start: int, length: int) -> None:
    check_right_or_refused(WHOLE[:start] + WHOLE[start + length :])
    check_right_or_refused(WHOLE[:start])


@given(positions=st.lists(st.integers(0, len(PROGRAM) - 1), min_size=1, max_size=3), value=st.integers(0, 255))
def test_a_changed_pickle_with_the_right_checksum_is_read_or_refused(positions: list[int], value: int) -> None:
    """Nothing says which tensors are right then; but they are tensors."""
    program = bytearray(PROGRAM)
    for position in positions:
        program[position] = value
    check_tensors_or_refused(bytes(program))


@given(data=st.data())
def test_steps_in_any_order_are_read_or_refused(data: st.DataObject) -> None:
    ends = [position for _, _, position in pickletools.genops(PROGRAM) if position is not None]
    steps = [PROGRAM[start:end] for start, end in pairwise(ends)]
    chosen = data.draw(st.lists(st.sampled_from(steps + [bytes([code]) for code in range(256)]), max_size=60))
    check_tensors_or_refused(PROGRAM[: data.draw(st.sampled_from(ends))] + b"".join(chosen) + b".")


@given(program=st.binary(max_size=300))
def test_any_bytes_as_a_pickle_are_refused(program: bytes) -> None:
    with pytest.raises(CheckpointError):
        read(with_pickle(program, WHOLE))


def check_tensors_or_refused(program: bytes) -> None:
    try:
        loaded = read(with_pickle(program, WHOLE))
    except CheckpointError as refusal:
        message = refusal.message
        if not message.isprintable():
            pytest.fail(message)
        return
    assert loaded
    for value in loaded.values():
        last = value.storage_offset() + sum((size - 1) * step for size, step in zip(value.shape, value.stride(), strict=True))
        assert not value.numel() or (last + 1) * value.itemsize <= value.untyped_storage().nbytes()
        value.clone()  # reads every element
