"""Headers of safetensors files: equal to what the format's own library writes, and refused where they are inconsistent."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bundler.models.pickle_interpreter import UnreadableError
from bundler.models.safetensors_files import StoredTensor, read_safetensors_header


def read(header: bytes, data: bytes = b"", *, length: int | None = None) -> dict[str, StoredTensor]:
    content = (len(header) if length is None else length).to_bytes(8, "little") + header + data
    return read_safetensors_header(io.BytesIO(content), len(content))


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_files_of_the_formats_own_library_are_read(tmp_path: Path) -> None:
    tensors = {
        "weight": torch.arange(6, dtype=torch.float16).reshape(2, 3),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.zeros(0, 4),
        "größe": torch.ones(5, dtype=torch.bfloat16),
    }
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    content = (tmp_path / "a.safetensors").read_bytes()
    found = read_safetensors_header(io.BytesIO(content), len(content))
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        stored = found[name]
        assert stored.shape == tuple(value.shape)
        assert content[stored.offset :][: stored.size] == value.reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    ("entries", "size", "words"),
    [
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, 12, "b does not begin where"),
        ({"a": entry("F32", [2], 4, 12)}, 12, "a does not begin where"),
        ({"a": entry("F32", [2], 0, 8)}, 12, "4 bytes after its last tensor"),
        ({"a": entry("F32", [2], 0, 8)}, 4, "a extends beyond the end"),
        ({"a": entry("F32", [3], 0, 8)}, 8, "has 8 bytes, its shape needs 12"),
        ({"a": entry("F32", [-1], 0, 4)}, 4, "invalid shape"),
        ({"a": entry("F32", [2**40, 2**40], 0, 4)}, 4, "invalid shape"),
        ({"a": entry("F32", [True], 0, 4)}, 4, "invalid shape"),
        ({"a": entry("F32", [1] * 17, 0, 4)}, 4, "invalid shape"),
        ({"a": entry("X9", [1], 0, 4)}, 4, "unknown type X9"),
        ({"a": entry("F32", [1], 4, 0)}, 4, "beyond the end"),
        ({"a": {"dtype": "F32", "shape": [1]}}, 4, "lacks dtype, shape or data_offsets"),
        ({"a": 5}, 0, "lacks dtype, shape or data_offsets"),
    ],
)
def test_inconsistent_entries_are_refused(entries: dict[str, Any], size: int, words: str) -> None:
    with pytest.raises(UnreadableError, match=words):
        read(json.dumps(entries).encode(), bytes(size))


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
        (b'{"\xff": 1}', "not UTF-8"),
    ],
)
def test_headers_that_are_not_strict_json_are_refused(header: bytes, words: str) -> None:
    with pytest.raises(UnreadableError, match=words):
        read(header)


@pytest.mark.parametrize("length", [3, 10**6, 2**60])
def test_a_header_longer_than_the_file_is_refused(length: int) -> None:
    with pytest.raises(UnreadableError, match="truncated"):
        read(b"{}", length=length)
