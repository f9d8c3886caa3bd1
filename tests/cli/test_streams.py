"""Output that cannot be written: a closed pipe, a closed stream, a full disk."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

BUNDLER = [sys.executable, "-c", "from bundler.cli import main; main()"]
ROOT = Path(__file__).parents[2]


def shell(command: str) -> tuple[int, str]:
    """Run `bundler` in bash with the redirections of `command`, and return its own exit code and what stands in `errors`."""
    words = " ".join(f"'{word}'" for word in BUNDLER)
    script = f'bundler() {{ {words} "$@"; }}; {command}; exit ${{PIPESTATUS[0]}}'
    run = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
    return run.returncode, run.stderr


@pytest.mark.parametrize("arguments", ["models", "models --json", "--help", "models --help", "--version"])
def test_a_reader_that_goes_away_ends_the_command_as_sigpipe_does(arguments: str) -> None:
    assert shell(f"bundler {arguments} | :") == (141, "")


def test_messages_that_nobody_reads_end_the_command_too() -> None:
    assert shell("bundler inspect nothing 2>&1 | :") == (141, "")


def test_a_closed_stream_is_a_place_that_takes_everything() -> None:
    assert shell("bundler models --json >&-") == (0, "")
    assert shell("bundler inspect nothing 2>&-") == (11, "")
    assert shell("bundler models <&- >&- 2>&-") == (0, "")


def test_a_full_disk_behind_standard_output_is_said() -> None:
    code, errors = shell("bundler models --json >/dev/full")
    assert code == 12
    assert "standard output: No space left" in errors
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors


def test_messages_that_cannot_be_written_change_no_exit_code() -> None:
    assert shell("bundler inspect nothing 2>/dev/full") == (11, "")
    assert shell("bundler models 2>/dev/full >/dev/null") == (0, "")


def test_no_file_becomes_standard_output_where_that_was_closed(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from bundler.cli import _open_standard_streams\n"
        "_open_standard_streams()\n"
        f"descriptor = os.open({str(tmp_path / 'model.onnx')!r}, os.O_WRONLY | os.O_CREAT)\n"
        "assert descriptor > 2, descriptor\n"
        "print('a result', flush=True)\n"
    )
    with subprocess.Popen(["bash", "-c", 'exec "$@" <&- >&- 2>&-', "-", sys.executable, "-c", program], cwd=ROOT) as process:
        assert process.wait(timeout=30) == 0
    assert (tmp_path / "model.onnx").read_bytes() == b""


IMPORTING = """
import importlib.abc, os, signal, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from bundler.cli import main
main()
"""


def test_an_interruption_while_modules_are_imported_shows_no_traceback() -> None:
    run = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
    assert (run.returncode, run.stderr) == (-signal.SIGINT, "")
