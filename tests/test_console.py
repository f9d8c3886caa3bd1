"""The only writer to the terminal: what goes where, in a pipe and in a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import struct
import subprocess
import sys
from fcntl import ioctl
from termios import TIOCSWINSZ

import pytest

from bundler import console

LONG = "a text that is far longer than a narrow terminal is wide, and must not be cut"


def test_results_go_to_stdout_and_everything_else_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.text_result("result")
    console.json_result({"é": [1]})
    console.table(("a",), [("b",)])
    out, err = capsys.readouterr()
    assert out == 'result\n{\n  "é": [\n    1\n  ]\n}\na\nb\n'
    assert err == ""
    for say in (console.heading, console.step, console.detail, console.success, console.warn):
        say("said")
    console.error("failed", "do this")
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split()[-1] for line in err.splitlines()] == ["said"] * 5 + ["failed", "this"]
    assert "next: do this" in err


def test_an_error_without_a_next_step_says_none(capsys: pytest.CaptureFixture[str]) -> None:
    console.error("failed", "")
    assert capsys.readouterr().err == "✗ error: failed\n"


@pytest.mark.parametrize("text", ["[bold]a[/bold]", "[/]", "a\\", "[link=x]", "a[0]", ":smile:", LONG * 3])
def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str], text: str) -> None:
    console.warn(text)
    console.table((text,), [(text,)])
    out, err = capsys.readouterr()
    assert err == f"! warning: {text}\n"
    assert out.splitlines() == [text] * 2


def test_a_table_in_a_pipe_has_one_whole_line_a_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    console.table(("name", "for"), [("x", LONG), ("longer", "y")])
    assert capsys.readouterr().out.splitlines() == ["name    for", f"x       {LONG}", "longer  y"]


def test_a_table_in_a_terminal_is_folded_and_loses_nothing() -> None:
    text = in_terminal(f"console.table(('name', 'for'), [('[x]', {LONG!r})])", columns=30)
    assert max(map(len, text.splitlines())) <= 30
    assert "[x]" in text
    assert set(LONG.split()) <= set(text.split())


def test_progress_is_a_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("counting [x]", 3) as advance:
        for _ in range(3):
            advance(1)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "  counting [x] …\n"


def test_progress_is_a_bar_in_a_terminal() -> None:
    text = in_terminal("with console.progress('counting [x]', 3) as advance:\n  advance(1); advance(2)", columns=80)
    assert "counting [x]" in text
    assert "3/3" in text


def in_terminal(code: str, *, columns: int) -> str:
    """Run code of the console in a terminal of that width; return what it shows, without control sequences."""
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    with subprocess.Popen(
        [sys.executable, "-c", f"from bundler import console\n{code}"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environment, "TERM": "xterm"},
    ):
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 4096):
                shown += data
        except OSError:  # Linux ends a terminal so, once nobody holds its other end
            pass
        os.close(ours)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).replace("\r\n", "\n")


def test_json_is_for_machines_also_when_a_name_is_strange(capsys: pytest.CaptureFixture[str]) -> None:
    console.json_result({"name": '"\n[x]'})
    assert json.loads(capsys.readouterr().out) == {"name": '"\n[x]'}
