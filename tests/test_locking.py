"""Locks between processes, held by real processes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bundler.errors import OutputError
from bundler.locking import is_held, lock, try_lock

HOLDING = """
import sys, time
from pathlib import Path
from bundler.locking import lock
with lock(Path(sys.argv[1]), seconds=10):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""
# Gets SIGTERM at each call of the given kind.
INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from bundler.interruption import install_signal_handlers
from bundler.locking import try_lock
def watch(event, arguments):
    if event == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGTERM)
install_signal_handlers()
sys.addaudithook(watch)
with try_lock(Path(sys.argv[1])):
    pass
"""


@contextmanager
def held_by_another_process(path: Path, seconds: float) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDING, str(path), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lock_is_held_while_the_block_runs_and_its_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock(path, seconds=0):
        assert is_held(path)
    assert not is_held(path)
    assert not path.exists()


def test_a_lock_of_another_process_is_not_taken_but_awaited(tmp_path: Path) -> None:
    path, waits = tmp_path / "lock", list[float]()
    with held_by_another_process(path, 0.3):
        assert is_held(path)
        with try_lock(path) as held:
            assert not held
        assert path.exists()
        with lock(path, seconds=30, on_wait=lambda: waits.append(time.monotonic())):
            assert is_held(path)
    assert len(waits) == 1


def test_a_wait_has_an_end(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with (
        held_by_another_process(path, 60),
        pytest.raises(OutputError, match=r"another process has held .*lock for 0 s"),
        lock(path, seconds=0),
    ):
        pass


def test_the_kernel_releases_the_lock_of_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held_by_another_process(path, 60) as process:
        process.kill()
        process.wait()
        assert path.exists()
        assert not is_held(path)
        with try_lock(path) as held:
            assert held
    assert not path.exists()


@pytest.mark.parametrize("event", ["open", "fcntl.flock", "os.remove"])
def test_a_signal_while_a_lock_is_taken_or_released_leaves_no_file(tmp_path: Path, event: str) -> None:
    path = tmp_path / "lock"
    run = subprocess.run([sys.executable, "-c", INTERRUPTED, str(path), event], capture_output=True, text=True, check=False)
    assert "InterruptedBySignal" in run.stderr
    assert not path.exists()


def test_a_link_in_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="lock cannot be locked"), try_lock(tmp_path / "lock"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_directory_that_does_not_exist_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written to"), try_lock(tmp_path / "nothing" / "lock"):
        pass
