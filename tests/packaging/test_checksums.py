"""SHA256SUMS: readable by `sha256sum`, and parsed in one form only."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bundler.errors import BundleDamagedError
from bundler.packaging.checksums import parse_checksums, write_checksums
from bundler.packaging.reading import check_bundle

DIGEST = "0123456789abcdef" * 4


def test_sha256sum_verifies_every_file(bundle: Path) -> None:
    write_checksums(bundle)
    run = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=bundle, capture_output=True, text=True, check=True)
    assert len(run.stdout.splitlines()) == len(parse_checksums((bundle / "SHA256SUMS").read_bytes()))


def test_writing_the_list_again_gives_the_same_bytes(bundle: Path) -> None:
    before = (bundle / "SHA256SUMS").read_bytes()
    write_checksums(bundle)
    assert (bundle / "SHA256SUMS").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{DIGEST}  a\n{DIGEST}  a\n", "a occurs twice"),
        (f"{DIGEST.upper()}  a\n", "line 1 is not"),
        (f"{DIGEST} *a\n", "line 1 is not"),
        (f"{DIGEST}  a\r\n", "line 1 is not"),
        (f"\\{DIGEST}  a\\nb\n", "line 1 is not"),
        (f"{DIGEST}  a", "its last line is incomplete"),
        (f"{DIGEST}  a\n\n", "line 2 is not"),
        (f"{DIGEST}  ../a\n", "line 1 is not"),
        (f"{DIGEST}  /a\n", "line 1 is not"),
        (f"{DIGEST}  a//b\n", "line 1 is not"),
        (f"{DIGEST}  a/../b\n", "line 1 is not"),
        (f"{DIGEST}  -a\n", "line 1 is not"),
        (f"{DIGEST}  SHA256SUMS\n", "it contains itself"),
        (f"{DIGEST[:-1]}  a\n", "line 1 is not"),
        (f"{DIGEST}  \u0430\n", "line 1 is not"),
        ("one word\n", "line 1 is not"),
    ],
)
def test_any_other_form_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_checksums(text.encode())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda bundle: (bundle / "README.md").write_text("README,md"), ["README.md has changed"]),
        (lambda bundle: (bundle / "README.md").write_text(""), ["README.md has changed"]),
        (lambda bundle: (bundle / "compose.yaml").unlink(), ["compose.yaml is missing"]),
        (lambda bundle: (bundle / "models/new.onnx").write_text(""), ["models/new.onnx is not in SHA256SUMS"]),
        (lambda bundle: (bundle / "extra.txt").write_text(""), ["extra.txt is not in SHA256SUMS"]),
        (
            lambda bundle: (bundle / "README.md").rename(bundle / "readme.md"),
            ["README.md is missing", "readme.md is not in SHA256SUMS"],
        ),
        (
            lambda bundle: [(bundle / name).write_text("") for name in ("README.md", "models/fp32.onnx")],
            ["README.md has changed", "models/fp32.onnx has changed"],
        ),
        (lambda bundle: (bundle / "SHA256SUMS").unlink(), ["SHA256SUMS cannot be read"]),
        (lambda bundle: (bundle / "SHA256SUMS").write_bytes(b"\xff"), ["SHA256SUMS cannot be read"]),
        (lambda bundle: (bundle / "SHA256SUMS").write_text("one word\n"), ["SHA256SUMS cannot be read"]),
        (lambda bundle: (bundle / "SHA256SUMS").write_text(""), ["README.md is not in SHA256SUMS"]),
    ],
    ids=["changed", "emptied", "missing", "added", "extra", "renamed", "two", "no list", "no text", "no sums", "empty list"],
)
def test_a_difference_is_named(bundle: Path, damage: Callable[[Path], object], words: list[str]) -> None:
    damage(bundle)
    with pytest.raises(BundleDamagedError) as caught:
        check_bundle(bundle)
    assert all(word in caught.value.message for word in words)
    assert caught.value.next_step


def test_a_change_of_any_byte_of_the_list_is_detected(bundle: Path) -> None:
    listed = parse_checksums((bundle / "SHA256SUMS").read_bytes())
    content = (bundle / "SHA256SUMS").read_bytes()
    for position, bits in itertools.product(range(len(content)), (0x01, 0x07, 0x20)):
        changed = bytearray(content)
        changed[position] ^= bits
        try:
            assert parse_checksums(bytes(changed)) != listed
        except ValueError:
            continue
