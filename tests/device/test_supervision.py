"""The process that supervises the work: crashes are named, signals end everything, a closed pipe is no failure."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from .conftest import TinyBundle

SITE_PACKAGES = Path(sysconfig.get_paths()["platlib"])


def test_a_library_that_crashes_is_named(bundle: TinyBundle, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    done = bundle.run("selftest", PYTHONPATH=str(tmp_path))
    assert done.returncode == 4
    assert "SIGILL" in done.stderr


def start_sleeping(bundle: TinyBundle, folder: Path) -> subprocess.Popen[str]:
    """Start a selftest that has reached the loading of onnxruntime and stays there."""
    (folder / "onnxruntime.py").write_text("import sys, time\nprint('asleep', flush=True)\ntime.sleep(60)\n")
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, str(bundle.root / "device.pyz"), "selftest"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "asleep\n"
    return process


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_stopping_it_leaves_nothing_running(bundle: TinyBundle, tmp_path: Path, number: signal.Signals, exit_code: int) -> None:
    with start_sleeping(bundle, tmp_path) as process:
        process.send_signal(number)
        began = time.monotonic()
        process.communicate(timeout=30)  # ends when the last process that holds stdout has ended
        assert time.monotonic() - began < 10
        assert process.returncode == exit_code


@pytest.mark.parametrize("command", ["--help", "info", "info --json", "selftest", "selftest --json"])
def test_a_reader_that_ends_early_is_no_failure(bundle: TinyBundle, command: str) -> None:
    process = subprocess.Popen(
        [sys.executable, str(bundle.root / "device.pyz"), *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGPIPE, 128 + signal.SIGPIPE)
    assert re.sub(r"^\S+: image \d of \d\n", "", errors, flags=re.MULTILINE) == ""
