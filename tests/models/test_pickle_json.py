"""Descriptions of pickles cross between processes without loss."""

from __future__ import annotations

import json
import math

import pytest

from bundler.models.pickle_interpreter import Global, Object, Persistent, UnreadableError
from bundler.models.pickle_json import from_json, to_json


def crossed(value: object) -> object:
    return from_json(json.loads(json.dumps(to_json(value))))


@pytest.mark.parametrize(
    "value", [None, True, 7, -(2**62), 1.5, math.inf, "text \ud800 \x1b", [], (), [1, (2, [3, "a"]), None], (((),),)]
)
def test_plain_values(value: object) -> None:
    assert crossed(value) == value


def test_what_no_tensor_needs_becomes_none() -> None:
    assert crossed([b"bytes", bytearray(3), 10**5000]) == [None, None, None]


def test_objects() -> None:
    storage = Persistent(("storage", Global("torch", "FloatStorage"), "0", "cpu", 4))
    made = Object(Global("torch._utils", "_rebuild_tensor_v2"), (storage, 0, (2, 2)), state={}, items=[])
    whole = Object(Global("builtins", "dict"), (), state=None, items=[("a", made), (made, "b"), ("c", [made])])
    result = crossed(whole)
    assert isinstance(result, Object)
    (_, first), (second, _), (_, third) = result.items
    assert isinstance(first, Object)
    assert isinstance(third, list)
    assert first is second is third[0]  # what is shared stays shared
    assert first.maker == Global("torch._utils", "_rebuild_tensor_v2")
    assert isinstance(first.arguments, tuple)
    assert first.arguments[1:] == (0, (2, 2))
    assert first.arguments[0].identifier == storage.identifier


def test_values_that_hold_themselves() -> None:
    endless: list[object] = []
    endless.append((endless, Object(None, endless)))
    result = crossed(endless)
    assert isinstance(result, list)
    assert result[0][0] is result
    assert result[0][1].arguments is result


def test_deep_and_wide_values() -> None:
    deep: object = ()
    for _ in range(50_000):
        deep = (deep,)
    result = crossed(deep)
    for _ in range(50_000):
        assert isinstance(result, tuple)
        (result,) = result
    with pytest.raises(UnreadableError, match="more than 200,000 objects"):
        to_json([[] for _ in range(200_001)])


@pytest.mark.parametrize("encoded", [[], [[7]], [[0], ["?"]], [[0], ["t", [1]]], [[0], ["o"]], [0, 5]])
def test_other_json_is_refused(encoded: list[object]) -> None:
    with pytest.raises(UnreadableError):
        from_json(encoded)
