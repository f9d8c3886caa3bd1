"""The restricted pickle interpreter: equal records for every protocol, and nothing is imported or called."""

from __future__ import annotations

import io
import os
import pickle  # noqa: TID251  only to write
import sys
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path

import pytest

from bundler.models import pickle_interpreter
from bundler.models.pickle_interpreter import Global, Object, Persistent, UnreadableError, interpret


def plain(value: object) -> object:
    """Convert records of dicts back to dicts; they have no equality of their own."""
    match value:
        case Object(maker=Global(module="builtins", name="dict"), items=items):
            return {plain(key): plain(item) for key, item in items}
        case list():
            return [plain(item) for item in value]
        case tuple():
            return tuple(plain(item) for item in value)
    return value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_read_from_every_protocol(protocol: int) -> None:
    value = {"a": [1, -2.5, None, True, 2**70], "b": ("x", "größer", ()), 3: {"nested": [[]]}}
    assert plain(interpret(pickle.dumps(value, protocol))) == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_objects_are_records_of_their_callable_and_arguments(protocol: int) -> None:
    found = interpret(pickle.dumps(Fraction(1, 3), protocol))
    assert isinstance(found, Object)
    assert Fraction.__name__ in str(found.maker) or Fraction.__name__ in str(found.arguments)


def test_items_of_a_dict_subclass_are_kept_in_order() -> None:
    found = interpret(pickle.dumps(OrderedDict([("b", 1), ("a", 2)]), 2))
    assert isinstance(found, Object)
    assert found.maker == Global("collections", "OrderedDict")
    assert found.items == [("b", 1), ("a", 2)]


class Calls:
    """Unpickling it would make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_called(protocol: int, tmp_path: Path) -> None:
    found = interpret(pickle.dumps(Calls(tmp_path / "marker"), protocol))
    assert isinstance(found, Object)
    assert found.arguments == (str(tmp_path / "marker"),)
    assert not (tmp_path / "marker").exists()


def test_nothing_is_imported() -> None:
    assert interpret(b"cthis\nantigravity\n.") == Global("this", "antigravity")
    assert "this" not in sys.modules


def test_persistent_identifiers_are_kept() -> None:
    found = interpret(b"\x80\x02U\x07storageU\x010\x86Q.")
    assert isinstance(found, Persistent)
    assert found.identifier == ("storage", "0")


def test_the_position_is_after_the_pickle() -> None:
    stream = io.BytesIO(pickle.dumps([1], 2) + pickle.dumps("second", 2) + b"rest")
    assert interpret(stream) == [1]
    assert interpret(stream) == "second"
    assert stream.read() == b"rest"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (b"", "malformed"),
        (b"\x80\x02K\x01", "malformed"),
        (b".", "malformed"),
        (b"\x80\x02h\x05.", "memo entry that does not exist"),
        (b"\x80\x02K\x01K\x02a.", "not a list"),
        (b"\x80\x02K\x01K\x02K\x03s.", "not a dict"),
        (b"\x80\x02}(K\x01u.", "a key without a value"),
        (b"\x80\x02K\x01}b.", "not an object"),
        (b"\x80\x04K\x01K\x02\x93.", "not a string"),
        (b"\x80\x02\x82\x01.", "opcode EXT1 is not supported"),
    ],
)
def test_malformed_and_unsupported_pickles_are_refused(program: bytes, words: str) -> None:
    with pytest.raises(UnreadableError, match=words):
        interpret(program)


def test_the_number_of_opcodes_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_interpreter, "MOST_STEPS", 100)
    assert interpret(b"N0" * 49 + b"N.") is None
    with pytest.raises(UnreadableError, match="more than 100 opcodes"):
        interpret(b"N0" * 51 + b"N.")
