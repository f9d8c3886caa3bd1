"""The Makefile: its variables are the options of the commands, and `make test` asks before it installs system packages."""

from __future__ import annotations

import importlib
import os
import pty
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[1]
ASK = ROOT / "docker" / "ask-to-install.sh"
VARIABLES = ("CI", "BUNDLER_NO_SYSTEM", "BUNDLER_REQUIRE_ENGINE", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in VARIABLES}

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str, text: str | None = None) -> str:
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True, cwd=ROOT, env=ENVIRONMENT).stdout


def pairs(name: str) -> dict[str, str]:
    words = make("--silent", "--file", "-", "print", text=f"include Makefile\nprint:\n\t@echo $({name})\n").split()
    return {variable: option for variable, _, option in (word.partition("=") for word in words)}


def options(command: str, *, flags: bool) -> set[str]:
    parameters = importlib.import_module(f"bundler.cli.{command}").command.params
    return {
        item.opts[0]
        for item in parameters
        if isinstance(item, click.Option) and not item.hidden and item.is_flag == flags and item.name != "help"
    }


@pytest.mark.parametrize("command", ["bundle", "verify"])
def test_the_variables_are_the_options_of_the_command(command: str) -> None:
    for flags, kind in ((False, "OPTIONS"), (True, "FLAGS")):
        table = pairs(f"{command.upper()}_{kind}")
        assert set(table.values()) == options(command, flags=flags)
        for variable, option in table.items():
            assert variable == option.removeprefix("--").replace("-", "_").upper()


def _bundler(*arguments: str) -> list[str]:
    (line,) = re.findall(r"\.venv/bin/(bundler .*)", make("--dry-run", *arguments))
    return shlex.split(line)


def test_make_bundle_passes_its_variables_on() -> None:
    words = _bundler("bundle", "MODEL=resnet18", "WEIGHTS=my w.pth", "MODE=fp32 int8-qat", "CALIBRATION_IMAGES=8", "JSON=1")
    assert words[:2] == ["bundler", "bundle"]
    context = importlib.import_module("bundler.cli.bundle").command.make_context("bundle", words[2:])
    expected = {"model": "resnet18", "target": "arm64", "weights": "my w.pth", "modes": ("fp32", "int8-qat")}
    assert expected.items() <= context.params.items()
    assert (context.params["calibration_pictures"], context.params["as_json"]) == (8, True)
    assert context.params["output"] == Path("dist")


def test_make_verify_passes_its_variables_on() -> None:
    words = _bundler("verify", "TARGET=x86", "EXPLAIN=1")
    assert words == ["bundler", "verify", "--target", "x86", "--output", "dist", "--explain"]


def test_the_help_names_every_target_and_variable() -> None:
    text = make("help")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    for target in phony.split():
        assert f"  make {target} " in text
    for variable, option in {**pairs("BUNDLE_OPTIONS"), **pairs("BUNDLE_FLAGS")}.items():
        assert re.search(rf"^ +{variable} +{option}$", text, re.MULTILINE)


def test_only_the_targets_of_tests_ask() -> None:
    assert "ask-to-install.sh" in make("--dry-run", "test")
    assert "ask-to-install.sh" not in make("--dry-run", "bundle")


def _answered(answer: str, **environment: str) -> tuple[int, str]:
    """Run the script on a terminal on which `answer` was typed; return its exit code and what it wrote."""
    leader, follower = pty.openpty()
    os.write(leader, answer.encode())
    with subprocess.Popen(
        [ASK, "QEMU"], stdin=follower, stdout=follower, stderr=follower, env=ENVIRONMENT | environment
    ) as run:
        os.close(follower)
        code = run.wait(timeout=30)
    text = b""
    try:
        while chunk := os.read(leader, 4096):
            text += chunk
    except OSError:  # the end of a terminal
        pass
    os.close(leader)
    return code, text.decode()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is asked")
@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("Yes\n", 0), ("n\n", 1), ("\n", 1), ("\x04", 1)])
def test_on_a_terminal_it_asks(answer: str, code: int) -> None:
    found, text = _answered(answer)
    assert found == code
    assert "Missing on this machine: QEMU. Install with apt-get? [y/N]" in text


@pytest.mark.parametrize("environment", [{"CI": "true"}, {"BUNDLER_REQUIRE_ENGINE": "1"}, {"BUNDLER_NO_SYSTEM": "1"}])
def test_it_does_not_ask_when_the_environment_answers(environment: dict[str, str]) -> None:
    assert _answered("n\n", **environment)[0] == 0


def test_without_a_terminal_it_does_not_ask() -> None:
    run = subprocess.run([ASK, "QEMU"], stdin=subprocess.DEVNULL, capture_output=True, check=False, env=ENVIRONMENT)
    assert (run.returncode, run.stderr) == (0, b"")
