"""SHA256SUMS: readable by `sha256sum`, and every difference from it is named."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bundler.errors import BundleDamagedError
from bundler.packaging.checksums import check_checksums, write_checksums


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    for name in ("models/a b.onnx", "golden/é.npy", "README.md", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    write_checksums(tmp_path)
    return tmp_path


def test_sha256sum_reads_it_and_finds_every_file(bundle: Path) -> None:
    run = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=bundle, capture_output=True, text=True, check=True)
    assert len(run.stdout.splitlines()) == 4
    check_checksums(bundle)


def test_writing_it_again_changes_nothing(bundle: Path) -> None:
    before = (bundle / "SHA256SUMS").read_bytes()
    write_checksums(bundle)
    assert (bundle / "SHA256SUMS").read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda bundle: (bundle / "README.md").write_text("README,md"), ["README.md has changed"]),
        (lambda bundle: (bundle / "README.md").write_text(""), ["README.md has changed"]),
        (lambda bundle: (bundle / ".hidden").unlink(), [".hidden is missing"]),
        (lambda bundle: (bundle / "models/new.onnx").write_text(""), ["models/new.onnx is not in SHA256SUMS"]),
        (
            lambda bundle: (bundle / "README.md").rename(bundle / "readme.md"),
            ["README.md is missing", "readme.md is not in SHA256SUMS"],
        ),
        (
            lambda bundle: [(bundle / name).write_text("") for name in ("README.md", "models/a b.onnx")],
            ["README.md has changed", "models/a b.onnx has changed"],
        ),
        (lambda bundle: (bundle / "SHA256SUMS").unlink(), ["SHA256SUMS cannot be read"]),
        (lambda bundle: (bundle / "SHA256SUMS").write_bytes(b"\xff"), ["SHA256SUMS cannot be read"]),
        (lambda bundle: (bundle / "SHA256SUMS").write_text("one word\n"), ["SHA256SUMS cannot be read"]),
        (lambda bundle: (bundle / "SHA256SUMS").write_text(""), ["README.md is not in SHA256SUMS"]),
    ],
    ids=["changed", "emptied", "missing", "added", "renamed", "two", "no list", "no text", "no list of sums", "empty list"],
)
def test_a_difference_is_named(bundle: Path, damage: Callable[[Path], object], words: list[str]) -> None:
    damage(bundle)
    with pytest.raises(BundleDamagedError) as caught:
        check_checksums(bundle)
    assert all(word in caught.value.message for word in words)
    assert caught.value.next_step


def test_every_byte_of_the_list_counts(bundle: Path) -> None:
    content = (bundle / "SHA256SUMS").read_bytes()
    for position, bits in itertools.product(range(len(content)), (0x01, 0x07, 0x20)):
        changed = bytearray(content)
        changed[position] ^= bits
        (bundle / "SHA256SUMS").write_bytes(changed)
        with pytest.raises(BundleDamagedError):
            check_checksums(bundle)
