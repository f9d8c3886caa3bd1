from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bundler.errors import OutOfSpaceError, OutputError
from bundler.images.cache import cached_folder, find_partial_entries, remove_partial_entry
from bundler.images.layers import read_layer


def test_an_entry_is_made_once_for_equal_facts(cache: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "layer.tar").write_bytes(b"layer")

    first = cached_folder("base", {"suite": "bookworm", "packages": ("a", "b")}, make)
    second = cached_folder("base", {"packages": ("a", "b"), "suite": "bookworm"}, make)
    assert first == second
    assert len(made) == 1
    assert (first.path / "layer.tar").read_bytes() == b"layer"
    assert first.path.parent == cache


@pytest.mark.parametrize("changed", [{"suite": "trixie", "packages": ["a"]}, {"suite": "bookworm", "packages": ["a", "b"]}])
def test_other_facts_give_another_entry(cache: Path, changed: dict[str, object]) -> None:
    first = cached_folder("base", {"suite": "bookworm", "packages": ["a"]}, lambda _folder: None)
    assert cached_folder("base", changed, lambda _folder: None) != first
    assert len(list(cache.iterdir())) == 2


def test_a_failure_leaves_no_entry(cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "layer.tar").write_bytes(b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cached_folder("base", {}, fail)
    assert list(cache.iterdir()) == []


# Makes an entry, slowly, and says so; or is killed by its first argument half-way.
MAKING = """
import os, signal, sys, time
from pathlib import Path
from bundler.images.cache import cached_folder
from bundler.interruption import install_signal_handlers
def make(folder):
    print("making", flush=True)
    (folder / "layer.tar").write_text("x")
    if sys.argv[1] != "0":
        os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(0.5)
install_signal_handlers()
print(cached_folder("base", {}, make).path.joinpath("layer.tar").read_text())
"""


def _making(number: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKING, str(int(number))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_concurrent_processes_one_makes_the_entry(cache: Path) -> None:
    outputs = [process.communicate(timeout=60) for process in [_making() for _ in range(4)]]
    assert sorted(stdout for stdout, _ in outputs) == ["making\nx\n", "x\n", "x\n", "x\n"], outputs
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_partial_entry_of_a_killed_process_is_found_and_does_not_matter(cache: Path, number: int) -> None:
    _making(number).communicate(timeout=60)
    partial = find_partial_entries()
    assert bool(partial) == (number == signal.SIGKILL)
    assert _making().communicate(timeout=60)[0] == "making\nx\n"
    for path in find_partial_entries():
        assert remove_partial_entry(path)
    assert [path.name[:5] for path in cache.iterdir()] == ["base-"]


def test_an_entry_that_is_being_made_is_no_leftover(cache: Path) -> None:
    def make(folder: Path) -> None:
        assert find_partial_entries() == ()
        assert not remove_partial_entry(folder.parent)
        (folder / "layer.tar").write_bytes(b"layer")

    assert (cached_folder("base", {}, make).path / "layer.tar").read_bytes() == b"layer"
    assert cache.is_dir()


def _fill(folder: Path) -> None:
    (folder / "layer.tar").write_bytes(b"layer")
    (folder / "wheels.json").write_bytes(b"[]")


def _truncate(folder: Path) -> None:
    (folder / "layer.tar").write_bytes(b"lay")


def _change(folder: Path) -> None:
    (folder / "layer.tar").write_bytes(b"LAYER")


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _replace_by_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"x")


def _dangle(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")


DAMAGES: list[Callable[[Path], object]] = [
    _truncate,
    _change,
    _empty,
    _replace_by_a_file,
    _dangle,
    lambda folder: (folder / "layer.tar").unlink(),
    lambda folder: (folder / "more").write_bytes(b"x"),
    lambda folder: (folder / "more").mkdir(),
    lambda folder: (folder / "checksums.json").unlink(),
    lambda folder: (folder / "checksums.json").write_bytes(b"{"),
    lambda folder: (folder / "checksums.json").write_bytes(b"[]"),
    lambda folder: (folder / "checksums.json").write_bytes(b"\xff"),
    lambda folder: (folder / "checksums.json").write_bytes(b'{"schema": "edge-bundler/cache/1", "sha256": []}'),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_again_with_one_warning(
    cache: Path, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    first = cached_folder("base", {}, _fill)
    damage(first.path)
    again = cached_folder("base", {}, _fill)
    assert again == first
    assert (again.path / "layer.tar").read_bytes() == b"layer"
    assert capsys.readouterr().err.count("is damaged") == 1
    assert cached_folder("base", {}, lambda _folder: pytest.fail("it was good")) == first
    assert capsys.readouterr().err == ""
    assert list(cache.iterdir()) == [first.path]


def test_a_layer_has_the_digest_of_its_bytes(cache: Path) -> None:
    folder = cached_folder("base", {}, _fill)
    assert folder.layer("layer.tar") == read_layer(folder.path / "layer.tar")
    assert folder.path.parent == cache


def test_a_cache_that_is_a_file_is_named(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_bytes(b"")
    with pytest.raises(OutputError, match=r"the cache .*edge-bundler cannot be created: File exists"):
        cached_folder("base", {}, _fill)


def test_a_user_without_a_home_directory_gets_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # one without an entry in the list of users
    with pytest.raises(OutputError, match="no home directory") as caught:
        cached_folder("base", {}, _fill)
    assert "XDG_CACHE_HOME" in caught.value.next_step


@pytest.fixture
def disk(cache: Path) -> Iterator[Callable[[str], None]]:
    """Mount a small file system as the cache; the fixture remounts it with other options."""
    if os.geteuid() != 0:
        pytest.skip("mounting a disk needs root")
    cache.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(cache)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a disk is not permitted")
    yield lambda options: _remount(cache, options)
    subprocess.run(["umount", str(cache)], check=True)


def _remount(cache: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(cache)], check=True)


@pytest.mark.usefixtures("disk")
def test_a_full_disk_is_named_and_no_partial_entry_stays(cache: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "layer.tar").write_bytes(bytes(100_000))

    with pytest.raises(OutOfSpaceError, match=str(cache)):
        cached_folder("base", {}, fill)
    assert list(cache.iterdir()) == []


@pytest.mark.usefixtures("disk")
def test_a_disk_that_was_full_before_is_named(cache: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        (cache / "other").write_bytes(bytes(100_000))
    with pytest.raises(OutOfSpaceError, match=str(cache)):
        cached_folder("base", {}, _fill)


def test_a_read_only_cache_is_read_and_a_damaged_entry_in_it_is_an_error(cache: Path, disk: Callable[[str], None]) -> None:
    first = cached_folder("base", {}, _fill)
    disk("ro")
    assert cached_folder("base", {}, lambda _folder: pytest.fail("it was good")) == first
    with pytest.raises(OutputError, match=f"{cache} cannot be written to.*Read-only"):
        cached_folder("other", {}, _fill)
    disk("rw")
    (first.path / "layer.tar").write_bytes(b"changed")
    disk("ro")
    with pytest.raises(OutputError, match=f"{cache} cannot be written to.*Read-only") as caught:
        cached_folder("base", {}, _fill)
    assert "XDG_CACHE_HOME" in caught.value.next_step
