"""JSON with one meaning, and what Python would let pass besides."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.strict_json import parse_json

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=10,
)


@given(VALUES)
def test_what_is_json_is_read(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Expecting value"),
        (b"{} {}", "Extra data"),
        (b"[1,]", "Expecting value|Illegal trailing comma"),
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
        (b'{"a": {"\\u0062": 1, "b": 2}}', "'b' occurs twice"),
        (b"[NaN]", "NaN is not a number"),
        (b"[-Infinity]", "-Infinity is not a number"),
        (b"[1e999]", "too large"),
        (b"[-1e999]", "too large"),
        (b"1234567890123456789", "more than 18 digits"),
        (b"9" * 5000, "more than 18 digits"),
        (b"[" * 33 + b"]" * 33, "more than 32 levels"),
        (b'{"a":' * 33 + b"1" + b"}" * 33, "more than 32 levels"),
        (b"[" * 1_000_000, "more than 32 levels|Expecting value"),
        (b'["\\ud800"]', "unpaired surrogate"),
        (b'{"\\udc00": 1}', "unpaired surrogate"),
        (b'["\xff"]', r"not UTF-8 \(byte 2\)"),
        (b'["\xed\xa0\x80"]', "not UTF-8"),
        (b'["\n"]', "Invalid control character"),
    ],
)
def test_what_is_not_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json(content)


def test_thirty_two_levels_are_enough() -> None:
    parse_json(b"[" * 32 + b"]" * 32)
