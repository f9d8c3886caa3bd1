"""Parse untrusted JSON: duplicate keys, deep nesting, and what Python accepts beyond RFC 8259 are errors."""

from __future__ import annotations

import json
import math
from typing import Any

__all__ = ["parse_json"]

_DEPTH = 32  # levels of nested objects and arrays; a manifest has 8
_DIGITS = 18  # of an integer, which therefore fits into 64 bits


def parse_json(content: bytes) -> Any:
    """Return the JSON document in UTF-8 `content`.

    Raises:
        ValueError: it is not valid JSON, or has a duplicate key, NaN or infinity, an integer of more than 18 digits, more than
            32 levels, or an unpaired surrogate.
    """
    try:
        document = json.loads(
            content.decode(),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_int=_bounded_integer,
            parse_float=_finite,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise ValueError(f"it is nested more than {_DEPTH} levels deep") from error
    _check(document, _DEPTH)
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:100]!r} occurs twice in one object")
        found[key] = value
    return found


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number in JSON")


def _bounded_integer(text: str) -> int:
    if len(text.lstrip("-")) > _DIGITS:
        raise ValueError(f"the integer {text[:20]}… has more than {_DIGITS} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _check(value: Any, left: int) -> None:
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, dict | list):
        if left == 0:
            raise ValueError(f"it is nested more than {_DEPTH} levels deep")
        for item in value:
            _check(item, left - 1)
        if isinstance(value, dict):
            for item in value.values():
                _check(item, left - 1)


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the string {text[:40]!r} has an unpaired surrogate") from error
