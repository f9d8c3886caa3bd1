"""Known answers: calculations of numpy, hashlib and zlib that have one right result on every CPU."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["ANSWERS", "calculations", "check_arithmetic"]

# SHA-256 of each result of calculations(). Two's complement and IEEE 754 leave one right answer for each, on every CPU.
ANSWERS: Final[Mapping[str, str]] = {
    "float32 add": "6aeaef32cdc224bbe16ed99a2f004a86fe40c33a20ca6b63c0d910631a46768d",
    "float32 multiply": "cf3c930b82f982e5f8e6eeb6c154034fea7899f37d9a4fe9e33b16507c8b2a93",
    "float32 divide": "83f9864517359a84e893932506d355236618db663f1e3495f039204eb4b7acea",
    "float32 square root": "e5583bd2868c1975356431da2725a36867dbcc403d2f70e66c599c5542c9fe71",
    "float32 subnormal": "912454a34f257890a3460ad1822955b696108df1eef7c854aed7b71e2fc48578",
    "float32 round": "79dfed298ee907f1f65b84b7168ad9a5f2f2a3c5362fd8d1c2170dd43444ba58",
    "float32 truncate": "1ce3c7aa78fdf80f42d0e824507fb824e34b6ce71181f6f94502e83c00cf4048",
    "float32 to float16": "3dc51eb8330c5837640c47ccbdea377049fb34f55d385aca6ab3b712d94920ee",
    "float16 to float32": "93a2568e2b5be2e89ba01e29c7f47ba1610e089770820c0dd714138b2c773ec6",
    "float64 add": "b7e962862a31e2b2857b0565f1baa3b8b58da4c62a11c9174105db23e40dc1e5",
    "float64 multiply": "1eba535310ec20224dc3290c0cca20b205cc4e9475ad896737b0ac966ab9a454",
    "float64 divide": "5e9dd3c28d137d219f5f20d50fd09a8286efd06c5131a92264c1ab1f7497733a",
    "float64 square root": "ca3231174f2b133bf87c1bd14443eedeccb1ba977bd92f6430c100e675025844",
    "uint8 int8 dot product": "b2a7df96752697d72adb663a7697b7f3ef7a1bb6b734914e6b4c154f9ea9ecb9",
    "int8 int8 dot product": "74061796e25219f9ac6fead2a7cdc49836e8ba4741bcae38da3008f067909af6",
    "int32 multiply": "45b98decc24e0c17b3c7fb5b7ba1e2f2a8a85ce196d268c8f03a8ebf98428633",
    "int32 shift": "688be7b9743302f8657e7d61616adc9b9c3d5d1c2d5f16e046d2cbca4b4301d1",
    "int32 divide": "a4beefc30c5cea797f65fb1b1c244dbfe57c04568dfd25af8f2add2422521e93",
    "sha256": "26f52a6c1199386e28099c99af58de62b8cd3da351c8e53da606119faddc2276",
    "crc32": "93fbf3a291198af11e53a856aa49cd86dde3cb0b35fd7e1da46f512601b61319",
    "zlib": "26f52a6c1199386e28099c99af58de62b8cd3da351c8e53da606119faddc2276",
}


def check_arithmetic() -> dict[str, bool]:
    """Return, for each calculation, whether this machine gives the right answer."""
    return {name: hashlib.sha256(data).hexdigest() == ANSWERS.get(name) for name, data in calculations().items()}


def calculations() -> dict[str, bytes]:
    """Return the results, by the name of what was computed, as little-endian bytes."""
    noise = np.arange(1, 4097, dtype=np.uint64) * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
    noise = (noise ^ (noise >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    whole = ((noise >> np.uint64(40)).astype(np.int32) - 2**23) | 1  # odd, so never zero
    a32, b32 = (half.astype(np.float32) * np.float32(2**-10) for half in np.split(whole, 2))
    a64, b64 = a32.astype(np.float64) / 3, b32.astype(np.float64) / 7
    u8 = (noise >> np.uint64(56)).astype(np.uint8).reshape(64, 64)
    s8 = (noise >> np.uint64(48)).astype(np.uint8).view(np.int8).reshape(64, 64)
    half = (a32 * np.float32(2**-4)).astype(np.float16)
    results: dict[str, NDArray[Any]] = {
        "float32 add": a32 + b32,
        "float32 multiply": a32 * b32,
        "float32 divide": a32 / b32,
        "float32 square root": np.sqrt(np.abs(a32)),
        "float32 subnormal": a32 * np.float32(2**-140),
        "float32 round": np.rint(a32).astype(np.int32),
        "float32 truncate": a32.astype(np.int32),
        "float32 to float16": half,
        "float16 to float32": half.astype(np.float32),
        "float64 add": a64 + b64,
        "float64 multiply": a64 * b64,
        "float64 divide": a64 / b64,
        "float64 square root": np.sqrt(np.abs(a64)),
        "uint8 int8 dot product": u8.astype(np.int32) @ s8.astype(np.int32),
        "int8 int8 dot product": s8.astype(np.int32) @ s8.T.astype(np.int32),
        "int32 multiply": whole * whole[::-1],
        "int32 shift": (whole << 7) >> 13,
        "int32 divide": whole // 255,
    }
    answers = {name: np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes() for name, values in results.items()}
    text = noise.astype("<u8").tobytes()
    return {**answers, "sha256": text, "crc32": str(zlib.crc32(text)).encode(), "zlib": zlib.decompress(zlib.compress(text, 9))}
