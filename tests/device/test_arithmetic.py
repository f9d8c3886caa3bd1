"""The digests are of right answers, computed here by exact fractions, and not only of what one machine gave."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from bundler.device.arithmetic import ANSWERS, calculations, check_arithmetic

# bits, exponent of the smallest number
MANTISSA: dict[type, tuple[int, int]] = {np.float16: (11, -24), np.float32: (24, -149), np.float64: (53, -1074)}


def nearest(exact: Fraction, kind: type) -> float:
    """Round to the nearest number of that kind, ties to even (Python rounds fractions to integers that way)."""
    bits, smallest = MANTISSA[kind]
    if exact == 0:
        return 0.0
    exponent = math.floor(math.log2(abs(exact)))
    unit = Fraction(2) ** max(exponent - bits + 1, smallest)
    return float(round(exact / unit) * unit)


def nearest_root(exact: Fraction, kind: type) -> float:
    bits, _ = MANTISSA[kind]
    exponent = math.floor(math.log2(exact) / 2)
    unit = Fraction(2) ** (exponent - bits)  # half a unit in the last place
    halves = math.isqrt(math.floor(exact / unit**2))
    return float((halves + 1) // 2 * 2 * unit)  # a root is never exactly between two numbers


def noise() -> list[int]:
    """The same 64-bit numbers as in the program, by Python's integers."""
    mask = 2**64 - 1
    numbers = [(index * 6364136223846793005 + 1442695040888963407) & mask for index in range(1, 4097)]
    return [((number ^ (number >> 29)) * 0xBF58476D1CE4E5B9) & mask for number in numbers]


def floats() -> tuple[list[Fraction], list[Fraction]]:
    values = [Fraction(((number >> 40) - 2**23) | 1, 1024) for number in noise()]
    return values[:2048], values[2048:]


def wrapped(value: int) -> int:
    return (value + 2**31) % 2**32 - 2**31


def answer(kind: type, values: list[float] | list[int]) -> str:
    return hashlib.sha256(np.array(values, dtype=kind).tobytes()).hexdigest()


def pairwise(kind: type, operation: Callable[[Fraction, Fraction], Fraction]) -> list[float]:
    left, right = floats()
    if kind is np.float64:
        left = [Fraction(nearest(value / 3, kind)) for value in left]
        right = [Fraction(nearest(value / 7, kind)) for value in right]
    return [nearest(operation(a, b), kind) for a, b in zip(left, right, strict=True)]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_arithmetic(kind: type) -> None:
    name = kind.__name__
    assert ANSWERS[f"{name} add"] == answer(kind, pairwise(kind, lambda a, b: a + b))
    assert ANSWERS[f"{name} multiply"] == answer(kind, pairwise(kind, lambda a, b: a * b))
    assert ANSWERS[f"{name} divide"] == answer(kind, pairwise(kind, lambda a, b: a / b))
    roots = pairwise(kind, lambda a, _b: abs(a))
    assert ANSWERS[f"{name} square root"] == answer(kind, [nearest_root(Fraction(a), kind) for a in roots])


def test_conversions() -> None:
    left, _ = floats()
    subnormal = [nearest(a / 2**140, np.float32) for a in left]
    assert any(0 < abs(value) < 2**-126 for value in subnormal)
    # A negative number that rounds to nothing becomes -0.
    assert ANSWERS["float32 subnormal"] == answer(
        np.float32, [math.copysign(value, a) for value, a in zip(subnormal, left, strict=True)]
    )
    assert ANSWERS["float32 round"] == answer(np.int32, [round(a) for a in left])
    assert ANSWERS["float32 truncate"] == answer(np.int32, [math.trunc(a) for a in left])
    halves = [nearest(a / 16, np.float16) for a in left]
    assert ANSWERS["float32 to float16"] == answer(np.float16, halves)
    assert ANSWERS["float16 to float32"] == answer(np.float32, halves)


def test_integers() -> None:
    whole = [((number >> 40) - 2**23) | 1 for number in noise()]
    unsigned = [number >> 56 for number in noise()]
    signed = [((number >> 48) & 255) - 256 * ((number >> 55) & 1) for number in noise()]
    u8, s8 = ([row[start : start + 64] for start in range(0, 4096, 64)] for row in (unsigned, signed))
    columns = list(zip(*s8, strict=True))
    by_columns = [sum(map(int.__mul__, row, column)) for row in u8 for column in columns]
    by_rows = [sum(map(int.__mul__, row, other)) for row in s8 for other in s8]
    assert ANSWERS["uint8 int8 dot product"] == answer(np.int32, by_columns)
    assert ANSWERS["int8 int8 dot product"] == answer(np.int32, by_rows)
    assert ANSWERS["int32 multiply"] == answer(np.int32, [wrapped(a * b) for a, b in zip(whole, whole[::-1], strict=True)])
    assert ANSWERS["int32 shift"] == answer(np.int32, [wrapped(a << 7) >> 13 for a in whole])
    assert ANSWERS["int32 divide"] == answer(np.int32, [a // 255 for a in whole])


def test_every_calculation_has_its_answer() -> None:
    assert calculations().keys() == ANSWERS.keys()
    assert all(check_arithmetic().values())
