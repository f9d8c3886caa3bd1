"""Terminal output: streams and formats, in a pipe and in a terminal."""

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


def test_an_error_without_a_next_step_has_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.error("failed", "")
    assert capsys.readouterr().err == "✗ error: failed\n"


@pytest.mark.parametrize("text", ["[bold]a[/bold]", "[/]", "a\\", "[link=x]", "a[0]", ":smile:", LONG * 3])
def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str], text: str) -> None:
    console.warn(text)
    console.table((text,), [(text,)])
    out, err = capsys.readouterr()
    assert err == f"! warning: {text}\n"
    assert out.splitlines() == [text] * 2


def test_a_table_in_a_pipe_has_one_line_per_row(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    console.table(("name", "for"), [("x", LONG), ("longer", "y")])
    assert capsys.readouterr().out.splitlines() == ["name    for", f"x       {LONG}", "longer  y"]


def test_a_table_in_a_terminal_is_wrapped_without_loss() -> None:
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
    """Run code in a terminal of the given width and return its output without control sequences."""
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


def test_json_is_valid_for_names_with_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    console.json_result({"name": '"\n[x]'})
    assert json.loads(capsys.readouterr().out) == {"name": '"\n[x]'}


HOSTILE = "\x1b]0;title\x07\x1b[31m\x00\x7f\x85\x9b\r\b\t\u200e\u202e\u2066\u2028\ufeff\ud800x\udcff[red]\n✓ passed"
SEEN = r"\x1b]0;title\x07\x1b[31m\x00\x7f\x85\x9b\r\x08\t\u200e\u202e\u2066\u2028\ufeff\ud800x\udcff[red]\n✓ passed"


def test_no_control_character_reaches_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for say in (console.heading, console.step, console.detail, console.success, console.warn, console.plain):
        say(HOSTILE)
    console.error(HOSTILE, HOSTILE)
    console.trace(ValueError(HOSTILE))
    console.text_result(HOSTILE)
    console.table((HOSTILE,), [(HOSTILE,)])
    with console.progress(HOSTILE, 1) as advance:
        advance(1)
    out, err = capsys.readouterr()
    assert all(line.isprintable() for line in (out + err).split("\n"))
    assert out.splitlines() == [SEEN] * 3
    assert err.count(SEEN) == 9
    assert err.splitlines()[-1] == f"  {SEEN} …"


def test_no_control_character_reaches_a_real_terminal() -> None:
    code = (
        f"text = {HOSTILE!r}\n"
        "console.warn(text)\n"
        "console.table((text,), [(text,)])\n"
        "with console.progress(text, 3) as advance:\n"
        "  advance(3, text)"
    )
    shown = in_terminal(code, columns=300)
    assert "\x1b" not in shown.replace("\x1b[", "")  # rich's own are gone
    assert shown.count(SEEN) >= 3
    assert "\u202e" not in shown


def test_json_is_escaped_and_gives_the_text_back(capsys: pytest.CaptureFixture[str]) -> None:
    text = HOSTILE + "\U000e0041"
    console.json_result({text: [text, "é"]})
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.split("\n"))
    assert json.loads(out) == {text: [text, "é"]}
    assert "é" in out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_any_encoding_gets_the_text(encoding: str, tmp_path: os.PathLike[str]) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe4\x1b[31m\xc3\xa9")
    command = [sys.executable, "-c", "from bundler.cli import main; main()", "inspect", name]
    run = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert run.returncode == 11
    assert b"\\udcff\\udce4\\x1b[31m" in run.stderr
    assert b"Traceback" not in run.stderr
    run = subprocess.run([*command[:-2], name], env=environment, capture_output=True, check=False)
    assert run.returncode == 2
    assert b"\x1b" not in run.stderr
