"""Untrusted arrays: numbers only, with the size of their headers, within limits."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bundler.packaging.arrays import read_arrays


def archive(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as written:
        for name, data in members.items():
            written.writestr(f"{name}.npy", data)
    return content.getvalue()


def npy(array: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def test_archives_of_numpy_are_read() -> None:
    content = io.BytesIO()
    np.savez_compressed(content, a=np.arange(6, dtype=np.uint8).reshape(2, 3), b=np.array([1.5], np.float32))
    found = read_arrays(content.getvalue())
    assert found.keys() == {"a", "b"}
    np.testing.assert_array_equal(found["a"], [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: b"", "not a .npz archive"),
        (lambda: archive(a=bytes(300 * 2**20)), "268,435,456 bytes"),
        (lambda: archive(a=npy(np.array([{}], dtype=object))), "contains object, not numbers"),
        (lambda: archive(a=npy(np.array(["x"]))), "not numbers"),
        (lambda: archive(a=npy(np.zeros(3))[:-1]), "which does not match float64"),
        (lambda: archive(a=npy(np.zeros(3)).replace(b"(3,)", b"(10**9,)")), "not a numpy array"),
        (lambda: archive(a=npy(np.zeros(30)).replace(b"(30,),", b"(9**9),")), "not a numpy array"),
        (lambda: archive(a=npy(np.zeros(30)).replace(b"(30,)", b"(-1,)")), "which does not match"),
    ],
)
def test_other_archives_and_arrays_are_refused(make: Callable[[], bytes], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_arrays(make())
