from __future__ import annotations

from pathlib import Path

import pytest

from bundler.containers.cache import cached_folder


def test_a_folder_is_made_once_for_the_same_facts(cache: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "layer.tar").write_bytes(b"layer")

    first = cached_folder("base", {"suite": "bookworm", "packages": ("a", "b")}, make)
    second = cached_folder("base", {"packages": ("a", "b"), "suite": "bookworm"}, make)
    assert first == second
    assert len(made) == 1
    assert (first / "layer.tar").read_bytes() == b"layer"
    assert first.parent == cache


@pytest.mark.parametrize("changed", [{"suite": "trixie", "packages": ["a"]}, {"suite": "bookworm", "packages": ["a", "b"]}])
def test_other_facts_get_another_folder(cache: Path, changed: dict[str, object]) -> None:
    first = cached_folder("base", {"suite": "bookworm", "packages": ["a"]}, lambda _folder: None)
    assert cached_folder("base", changed, lambda _folder: None) != first
    assert len(list(cache.iterdir())) == 2


def test_a_failure_leaves_nothing_to_be_taken_for_good(cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "layer.tar").write_bytes(b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cached_folder("base", {}, fail)
    assert list(cache.iterdir()) == []


def _theirs(folder: Path) -> None:
    (folder / "layer.tar").write_bytes(b"theirs")


def test_two_processes_at_once_end_with_one_whole_folder(cache: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "layer.tar").write_bytes(b"ours")
        cached_folder("base", {}, _theirs)

    folder = cached_folder("base", {}, make)
    assert (folder / "layer.tar").read_bytes() == b"theirs"
    assert list(cache.iterdir()) == [folder]
