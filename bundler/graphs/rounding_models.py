"""Results of ONNX Runtime's INT8 operators for every input, in each way in which its kernels round on different processors.

QLinearConv gives the same bits on every processor. Other operators compute in float32, with or without a fused multiply-add,
and on arm64 partly in fixed point; if the exact result is close to the middle between two integers, they round differently.
Each function here returns one array of results for each way of rounding, over all inputs. If these are equal, all processors
give the same bits.
The ways are those of ONNX Runtime's kernels (`mlas/lib/qladd.cpp`, `qladd_avx2.cpp`, `qlmul.cpp`, `qlgavgpool.cpp`; 1.32).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

__all__ = ["Affine", "UInt8", "additions", "ambiguous", "averages", "functions", "means", "multiplications"]

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

INTEGERS = np.arange(256, dtype=np.int32)
# Of what is computed in float32 in a few operations, of values up to 256 steps: eight roundings of 2^-24 each.
FLOAT_ERROR = 8 * 2.0**-24


@dataclass(frozen=True, kw_only=True)
class Affine:
    """Quantization parameters of uint8: the real value is `(integer - zero_point) * scale`, with a float32 scale above 0."""

    scale: float
    zero_point: int

    def values(self) -> NDArray[np.float64]:
        """Return the real value of each of the 256 integers, float64 [256]."""
        return (INTEGERS - self.zero_point).astype(np.float64) * float(np.float32(self.scale))


def ambiguous(answers: list[UInt8]) -> int:
    """Return the number of inputs for which the ways of rounding differ."""
    return int(np.any([answer != answers[0] for answer in answers[1:]], axis=0).sum())


def additions(a: Affine, b: Affine, result: Affine, *, only_b: int | None = None) -> list[UInt8]:
    """Return the results of QLinearAdd, uint8 [256, 256], or [256, 1] if b is the constant integer `only_b`."""
    ratio_a, ratio_b = _ratio(a, result), _ratio(b, result)
    left = INTEGERS[:, None]
    right = INTEGERS[None, :] if only_b is None else np.array([[only_b]], np.int32)
    answers = []
    for start in _fixed_parts(a, b, result, ratio_a, ratio_b):
        for fused_a, fused_b in product((False, True), repeat=2):
            first_a = _multiply_add(right, ratio_b, _multiply_add(left, ratio_a, start, fused=fused_a), fused=fused_b)
            first_b = _multiply_add(left, ratio_a, _multiply_add(right, ratio_b, start, fused=fused_b), fused=fused_a)
            answers += [_rounded(first_a), _rounded(first_b)]
    answers.append(_fixed_point_sum(left - a.zero_point, right - b.zero_point, ratio_a, ratio_b, result.zero_point))
    return answers


def _ratio(part: Affine, whole: Affine) -> np.float32:
    return np.float32(part.scale) / np.float32(whole.scale)


def _multiply_add(factor: NDArray[np.int32], ratio: np.float32, summand: Float32, *, fused: bool) -> Float32:
    if fused:  # exact in float64: 8 to 16 bits times 24, and a summand of a similar size
        exact = factor.astype(np.float64) * np.float64(ratio) + summand.astype(np.float64)
        return exact.astype(np.float32)
    return factor.astype(np.float32) * ratio + summand


def _fixed_parts(a: Affine, b: Affine, result: Affine, ratio_a: np.float32, ratio_b: np.float32) -> list[Float32]:
    """Return `zero_point - (ratio_a * a.zero_point + ratio_b * b.zero_point)` as compilers may contract it."""
    zero_a, zero_b = np.array(a.zero_point), np.array(b.zero_point)
    plain_a, plain_b = np.float32(a.zero_point) * ratio_a, np.float32(b.zero_point) * ratio_b
    sums = [
        plain_a + plain_b,
        _multiply_add(zero_a, ratio_a, np.asarray(plain_b), fused=True),
        _multiply_add(zero_b, ratio_b, np.asarray(plain_a), fused=True),
    ]
    parts = {float(np.float32(result.zero_point) - np.float32(total)) for total in sums}
    return [np.asarray(part, np.float32) for part in sorted(parts)]


def _rounded(values: Float32) -> UInt8:
    """Round to the nearest, halves to the even one, and saturate."""
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _fixed_point_sum(
    left: NDArray[np.int32], right: NDArray[np.int32], ratio_a: np.float32, ratio_b: np.float32, zero_point: int
) -> UInt8:
    """Add as arm64 does: multipliers of 22 bits, and a shift that rounds halves away from zero."""
    exponent = int(np.floor(np.log2(np.maximum(ratio_a, ratio_b))))
    shift = 21 - exponent
    multiplier_a, multiplier_b = (int(np.rint(ratio * np.float32(2.0**shift))) for ratio in (ratio_a, ratio_b))
    total = left.astype(np.int64) * multiplier_a + right.astype(np.int64) * multiplier_b
    return _shifted(total, shift, zero_point)


def _shifted(total: NDArray[np.int64], shift: int, zero_point: int) -> UInt8:
    total = total - (total < 0)
    rounded = (total + (1 << (shift - 1))) >> shift
    return (rounded + zero_point).clip(0, 255).astype(np.uint8)


def multiplications(a: Affine, b: Affine, result: Affine) -> list[UInt8]:
    """Return the results of QLinearMul, uint8 [256, 256]."""
    ratio = np.float32(a.scale) * np.float32(b.scale) / np.float32(result.scale)
    factors = np.outer(INTEGERS - a.zero_point, INTEGERS - b.zero_point)
    zero_point = np.asarray(result.zero_point, np.float32)
    return [_rounded(_multiply_add(factors, ratio, zero_point, fused=fused)) for fused in (False, True)]


def averages(x: Affine, result: Affine, *, count: int) -> list[UInt8]:
    """Return the results of QLinearGlobalAveragePool for each sum of `count` integers, uint8 [255 * count + 1]."""
    ratio = np.float32(x.scale) / (np.float32(result.scale) * np.float32(count))
    sums = np.arange(255 * count + 1, dtype=np.int64) - x.zero_point * count
    scaled = np.rint(sums.astype(np.float32) * ratio)
    mantissa, exponent = np.frexp(ratio)  # the whole float32 as an integer of 24 bits and a shift, as arm64 does
    exact = _shifted(sums * int(mantissa * np.float32(2.0**24)), 24 - int(exponent), result.zero_point)
    return [(scaled + result.zero_point).clip(0, 255).astype(np.uint8), exact]


def means(x: Affine, result: Affine, *, count: int) -> list[UInt8]:
    """Return the results of QLinearAveragePool for each sum of up to `count` integers, uint8 [255 * count + 1]."""
    sums = np.arange(255 * count + 1) / count - x.zero_point
    return _within_float_error(sums * float(np.float32(x.scale)), result)


def functions(x: Affine, result: Affine, compute: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> list[UInt8]:
    """Return the results of a function that is computed in float32 (as a table, or value by value), uint8 [256]."""
    return _within_float_error(compute(x.values()), result)


def _within_float_error(values: NDArray[np.float64], result: Affine) -> list[UInt8]:
    """Return the results at both ends of the error of float32; how each processor computes is not modelled."""
    exact = values / float(np.float32(result.scale)) + result.zero_point
    error = FLOAT_ERROR * np.maximum(np.abs(exact), 256)
    return [np.rint(exact + side).clip(0, 255).astype(np.uint8) for side in (-error, error)]
