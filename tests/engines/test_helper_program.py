from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bundler.engines.helper_program import full_disk, run_helper


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def _wait_for(path: Path) -> int:
    while not path.exists() or not path.read_text().endswith("\n"):
        time.sleep(0.05)
    return int(path.read_text())


def test_output_and_exit_code_are_returned() -> None:
    run = run_helper(["sh", "-c", "echo a; echo b >&2; cat; exit 3"], seconds=30)
    assert (run.returncode, run.stdout, run.stderr) == (3, "a\n", "b\n")


def test_a_helper_that_signals_its_process_group_does_not_signal_this_process() -> None:
    """mmdebstrap does this on a full disk."""
    assert run_helper(["sh", "-c", "kill -HUP 0"], seconds=30).returncode == -signal.SIGHUP


def test_the_time_limit_terminates_the_children_too(tmp_path: Path) -> None:
    child = tmp_path / "child"
    start = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        run_helper(["sh", "-c", f"sleep 300 & echo $! > {child}; wait"], seconds=1)
    assert time.monotonic() - start < 20
    assert not _is_running(_wait_for(child))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_terminates_the_children_too(tmp_path: Path, number: int) -> None:
    child = tmp_path / "child"
    program = (
        "import sys\nfrom bundler.engines.helper_program import run_helper\n"
        "from bundler.interruption import install_signal_handlers\ninstall_signal_handlers()\n"
        f"run_helper(['sh', '-c', 'sleep 300 & echo $! > {child}; wait'], seconds=300)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) as process:
        pid = _wait_for(child)
        process.send_signal(number)
        process.communicate(timeout=60)
    assert not _is_running(pid)


def test_files_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        run_helper(["sh", "-c", f"touch {tmp_path}/file; mkdir {tmp_path}/folder"], seconds=30)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755


def test_a_full_disk_is_distinguished_from_other_failures(tmp_path: Path) -> None:
    assert full_disk("E: cannot write: No space left on device", (tmp_path,)) == tmp_path
    assert full_disk("E: no such package", (tmp_path,)) is None
