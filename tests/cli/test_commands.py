"""The command line as its users meet it: help, listings, JSON, refusals."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import bundler as package
from bundler.cli import _COMMANDS
from bundler.models.registry import SCOPE, models

BUNDLER = str(Path(sys.executable).with_name("bundler"))
ROOT = Path(__file__).parents[2]
COMMANDS = ["bundle", "verify", "inspect", "models", "targets", "doctor"]
MODULES = {"models": "list_models", "targets": "list_targets"}
NO_ENGINE = {**os.environ, "DOCKER_HOST": "unix:///nonexistent/engine.sock"}


def bundler(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    run = subprocess.run([BUNDLER, *arguments], capture_output=True, text=True, check=False, env=NO_ENGINE)
    assert run.returncode == code, run.stderr
    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_an_example(command: str) -> None:
    text = bundler(command, "--help").stdout
    assert "Usage: bundler" in text
    assert command in bundler("--help").stdout
    if re.search(r"Usage: .*[A-Z]{4}", text.replace("OPTIONS", "")):  # it takes an argument
        assert "Example" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_has_the_first_sentence_of_each_commands_help(name: str) -> None:
    command = importlib.import_module(f"bundler.cli.{MODULES.get(name, name)}").command
    first, _, _ = inspect.cleandoc(command.help).partition("\n\n")
    assert _COMMANDS[name] == first


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text(name: str) -> None:
    command = importlib.import_module(f"bundler.cli.{MODULES.get(name, name)}").command
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option) and not parameter.hidden]
    assert [option.name for option in options if not option.help] == []


def test_a_renamed_option_is_refused_with_its_new_name() -> None:
    run = bundler("bundle", "resnet18", "--target", "arm64", "--calibration-pictures", "8", code=2)
    assert "--calibration-pictures was renamed to --calibration-images." in run.stderr


def test_the_listings_need_neither_torch_nor_the_engine() -> None:
    code = (
        "import sys; from bundler.cli import cli\n"
        "for arguments in (['--help'], ['models'], ['models', '--json']):\n"
        "    cli.main(arguments, standalone_mode=False)\n"
        "heavy = {'torch', 'docker', 'onnx', 'onnxruntime', 'pydantic', 'rich'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_models_lists_the_whole_scope_table() -> None:
    document = json.loads(bundler("models", "--json").stdout)
    assert {row["name"] for row in document} == set(models())
    assert {row["row"] for row in document} == {row.name for row in SCOPE}
    for row in document:
        assert row["modes"] == ["fp32", "int8-ptq", "int8-qat"]
        assert row["reason"] == ""
    assert len(bundler("models").stdout.splitlines()) == len(models()) + 1


def test_targets_and_doctor_print_one_json_document() -> None:
    assert [target["name"] for target in json.loads(bundler("targets", "--json").stdout)] == ["arm64-qnnpack", "x86-fbgemm"]
    findings = json.loads(bundler("doctor", "--json", code=3).stdout)
    engine = next(finding for finding in findings if finding["subject"] == "container engine")
    assert engine["status"] == "missing"
    assert engine["next_step"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["bundle", "mobilnet_v2", "--target", "arm64"], 4, "Did you mean mobilenet_v2"),
        (["bundle", "resnet18", "--target", "am64"], 4, "Did you mean arm64"),
        (["bundle", "yolov3", "--target", "arm64", "--weights", "pretrained"], 6, "there are no published weights of yolov3"),
        (["bundle", "yolov3", "--target", "arm64", "--input-size", "100"], 2, "must be a multiple of 32"),
        (["bundle", "yolov3", "--target", "arm64", "--input-size", "640x380"], 2, "multiple of 32 for yolov3"),
        (["bundle", "resnet18", "--target", "arm64", "--input-size", "64by64"], 2, "is not a size in pixels: N or HxW"),
        (["bundle", "resnet18", "--target", "arm64", "--mean", "0.5,0.5"], 2, "is not one number or three"),
        (["bundle", "resnet18", "--target", "arm64", "--mean", "127.5", "--std", "127.5"], 2, "--mean 0.5 --std 0.5"),
        (["bundle", "resnet18", "--target", "arm64", "--fit", "letterbox", "--crop", "64"], 2, "--crop cannot be combined"),
        (["bundle", "resnet18", "--target", "arm64", "--mode", "int8-qat"], 2, "one folder for each class"),
        (["bundle", "yolov5n", "--target", "arm64", "--mode", "int8-qat"], 2, "or images alone"),
        (["bundle", "yolov5n", "--target", "arm64", "--mode", "int4"], 5, "there is no such mode"),
        (["bundle", "resnet18", "--target", "arm64", "--weights", "nothing.pth"], 6, "nothing.pth"),
        (["bundle", "resnet18", "--target", "arm64", "--weights", "random", "--calibration", "nothing"], 7, "nothing"),
        (["bundle", "resnet18"], 2, "--target"),
        (["bundle", "resnet18", "--target", "arm64", "--batch-size", "0"], 2, "--batch-size"),
        (["nonsense"], 2, "nonsense"),
        (["inspect", "nothing"], 11, "nothing"),
    ],
)
def test_a_refusal_says_why_and_what_to_do(arguments: list[str], code: int, words: str, tmp_path: Path) -> None:
    if arguments[0] == "bundle":
        arguments = [*arguments, "--output", str(tmp_path)]
    run = bundler(*arguments, code=code)
    assert words in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""
    assert not any(tmp_path.rglob("*.json"))
    if code != 2:
        assert "next:" in run.stderr


def test_debug_shows_where_it_happened() -> None:
    run = bundler("--debug", "inspect", "nothing", code=11)
    assert "Traceback" in run.stderr
    assert "BundleDamagedError" in run.stderr


def test_the_version_is_the_newest_of_the_changelog() -> None:
    assert bundler("--version").stdout.strip() == f"bundler {package.__version__}"
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest
    assert newest[1] == package.__version__


def test_only_the_console_and_click_write_to_the_terminal() -> None:
    package_files = (path.relative_to(ROOT) for path in (ROOT / "bundler").rglob("*.py"))
    host_files = [path for path in package_files if path.parts[1] != "device"]  # the device program is a program of its own
    writers = [
        path.as_posix()
        for path in host_files
        if re.search(r"sys\.std(out|err)\.write|click\.echo|(?<![\w.])print\(", (ROOT / path).read_text(encoding="utf-8"))
    ]
    assert sorted(writers) == ["bundler/cli/__init__.py", "bundler/console.py"]
