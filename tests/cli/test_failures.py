"""Failures become a message, a next step and an exit code."""

from __future__ import annotations

import errno
import os
import shutil

import click
import pytest

from bundler.cli.failures import report
from bundler.errors import ExportError
from bundler.interruption import InterruptedBySignal


def reported(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = report(error, debug=False)
    return code, capsys.readouterr().err


def test_a_known_failure_has_its_own_exit_code_and_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = reported(ExportError("the graph has no input", next_step="Use another model."), capsys)
    assert code == 10
    assert text == "✗ error: the graph has no input\n  next: Use another model.\n"


def test_an_unexpected_error_names_its_type_and_how_to_see_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = reported(ZeroDivisionError("division by zero\nsecond line"), capsys)
    assert code == 1
    assert "✗ error: ZeroDivisionError: division by zero\n" in text
    assert "`bundler --debug …` prints the traceback" in text
    assert "report it" not in text  # no place to report it to is known


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/data/a.png"), "/data/a.png: Permission denied"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/a.onnx"), "the disk is full at /data/a.onnx"),
        (
            shutil.Error([("a", "b", f"[Errno 28] {os.strerror(errno.ENOSPC)}: 'b'")]),
            "the disk is full at the output directory",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']"),
            "no directory for temporary files is writable: /tmp, /var/tmp",
        ),
    ],
    ids=["permission", "full disk", "full disk while copying", "temporary directory"],
)
def test_an_error_of_the_file_system_names_the_file(error: OSError, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = reported(error, capsys)
    assert code == 12
    assert words in text
    assert "next: " in text


def test_a_usage_error_is_shown_as_click_words_it(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = reported(click.UsageError("no such option: --x\x07"), capsys)
    assert code == 2
    assert "no such option: --x\\x07" in text


def test_a_signal_decides_the_exit_code_of_what_follows_from_it(capsys: pytest.CaptureFixture[str]) -> None:
    error = ExportError("the clean-up failed", next_step="Remove it.")
    error.__cause__ = InterruptedBySignal(15)
    assert reported(error, capsys)[0] == 143
    assert reported(KeyboardInterrupt(), capsys)[0] == 130
