"""The tree of a bundle: real files, links and special files on a real file system."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bundler.errors import BundleDamagedError
from bundler.packaging.plain_tree import (
    MOST_ENTRIES,
    damaged_bundle,
    is_bundle_file,
    open_bundle,
    open_file,
    plain_tree,
    size_limit,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The smallest tree: one document and one model."""
    bundle = tmp_path / "bundle"
    (bundle / "models").mkdir(parents=True)
    (bundle / "manifest.json").write_text("{}")
    (bundle / "models" / "fp32.onnx").write_bytes(b"model")
    return bundle


def tree(bundle: Path) -> dict[str, int]:
    with open_bundle(bundle) as root:
        return dict(plain_tree(bundle, root))


def test_files_are_listed_with_their_sizes(folder: Path) -> None:
    assert tree(folder) == {"manifest.json": 2, "models/fp32.onnx": 5}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda bundle: (bundle / "README.md").symlink_to("/etc/passwd"), "README.md is a symbolic link, not a regular file"),
        (lambda bundle: (bundle / "golden").symlink_to("models"), "golden is a symbolic link, not a regular file"),
        (lambda bundle: os.mkfifo(bundle / "README.md"), "README.md is a FIFO, not a regular file"),
        (lambda bundle: os.link(bundle / "manifest.json", bundle / "x"), "x is a hard link: the file has 2 names"),
        (lambda bundle: (bundle / "evil").mkdir(), "evil is a folder that does not belong to a bundle"),
        (lambda bundle: (bundle / "models" / "more").mkdir(), "models/more is a folder that does not belong to a bundle"),
        (lambda bundle: (bundle / "golden").mkdir(), "golden is an empty folder"),
        (lambda bundle: (bundle / "a b").touch(), "a b has a name with characters other than letters"),
        (lambda bundle: (bundle / "MANIFEST.json").touch(), "MANIFEST.json and manifest.json differ only in case"),
        (lambda bundle: os.truncate(bundle / "manifest.json", 2**40), "manifest.json is larger than"),
    ],
)
def test_anything_else_is_named(folder: Path, change: Callable[[Path], object], problem: str) -> None:
    change(folder)
    with pytest.raises(BundleDamagedError) as caught:
        tree(folder)
    assert problem in caught.value.message


def test_too_many_files_end_the_search(folder: Path) -> None:
    for number in range(3 * MOST_ENTRIES):
        (folder / "models" / f"{number}.onnx").touch()
    with pytest.raises(BundleDamagedError, match="more than 200 files and folders"):
        tree(folder)


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("device.pyz", True),
        ("models/int8-ptq.onnx", True),
        ("golden/inputs.npy", True),
        ("net.service", True),
        ("numpy.py", False),
        ("models/numpy.py", False),
        ("other/inputs.npy", False),
    ],
)
def test_only_files_of_a_bundle_belong_to_it(path: str, known: bool) -> None:
    assert is_bundle_file(path) is known


def test_the_limits_on_sizes_depend_on_the_kind_of_file() -> None:
    assert size_limit("SHA256SUMS") < size_limit("report.html") < size_limit("models/fp32.onnx") == 2**31


def test_a_file_is_not_opened_through_a_link_to_its_folder(folder: Path) -> None:
    (folder / "golden").symlink_to("models")
    with open_bundle(folder) as root:
        with open_file(root, "models/fp32.onnx") as file:
            assert file.read() == b"model"
        with pytest.raises(OSError, match="golden"):
            open_file(root, "golden/fp32.onnx")


@pytest.mark.parametrize(
    ("name", "next_step"), [("net.tar.gz", "Unpack it"), ("file", "Specify the folder"), ("nothing", "Specify the folder")]
)
def test_what_is_no_folder_has_a_next_step(tmp_path: Path, name: str, next_step: str) -> None:
    if name != "nothing":
        (tmp_path / name).touch()
    with pytest.raises(BundleDamagedError) as caught:
        open_bundle(tmp_path / name)
    assert caught.value.next_step.startswith(next_step)


def test_a_refusal_lists_at_most_20_problems(tmp_path: Path) -> None:
    message = damaged_bundle(tmp_path, [f"problem-{number}" for number in range(25)]).message
    assert "problem-19, and 5 more" in message
    assert "problem-20" not in message
