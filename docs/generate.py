"""Write the generated parts of docs/: `make docs` writes them, tests/test_docs.py compares them with the code."""

from __future__ import annotations

import inspect
import re
import subprocess
from pathlib import Path

import click

from bundler.cli import cli
from bundler.cli.exit_codes import EXIT_CODES
from bundler.models.registry import SCOPE, ScopeRow

ROOT = Path(__file__).parents[1]
NOTE = "<!-- generated: make docs -->"


def pages() -> dict[str, str]:
    """Return the generated pages by their path below docs/."""
    return {
        "reference/command-line.md": command_line(),
        "reference/exit-codes.md": exit_codes(),
        "reference/make.md": make_variables(),
        "reference/models.md": models(),
        "decisions/README.md": decisions(),
    }


# ---- the command line


def command_line() -> str:
    context = click.Context(cli, info_name="bundler", **cli.context_settings)
    parts = [
        "# Command line",
        NOTE,
        (
            "`bundler COMMAND --help` prints the same texts. Results are written to standard output, progress and warnings to\n"
            "standard error; `--json` writes one JSON document. See also the [exit codes](exit-codes.md)."
        ),
        *_command(cli, context),
    ]
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None  # noqa: S101  it is listed
        parts += [f"## bundler {name}", *_command(command, click.Context(command, info_name=name, parent=context))]
    return "\n\n".join(parts) + "\n"


def _command(command: click.Command, context: click.Context) -> list[str]:
    usage = " ".join(("bundler", *context.command_path.split()[1:], *command.collect_usage_pieces(context)))
    rows = [_option(option, context) for option in command.params if isinstance(option, click.Option)]  # without --help
    table = ["| option | meaning |", "|---|---|", *(row for row in rows if row)]
    return [f"    {usage}", *_help(command.help or ""), "\n".join(table)]


def _option(option: click.Option, context: click.Context) -> str:
    record = option.get_help_record(context)
    if record is None:  # a hidden option
        return ""
    names, text = (" ".join(part.split()) for part in record)
    names = names.replace("|", r"\|")
    return f"| `{names}` | {_escaped(text)} |"


def _help(text: str) -> list[str]:
    """Return the paragraphs of a help text; a paragraph with click's mark for preformatted text becomes a code block."""
    paragraphs = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b\n"):
            title, *lines = paragraph.splitlines()[1:]
            paragraphs += [title, "\n".join(f"    {line.strip()}" for line in lines)]
        else:
            paragraphs.append(_escaped(" ".join(paragraph.split())))
    return paragraphs


def _escaped(text: str) -> str:
    """Escape what Markdown would interpret outside of code."""
    return re.sub(r"([|<>*])", r"\\\1", text)


# ---- exit codes


def exit_codes() -> str:
    rows = [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    return "\n".join(
        [
            "# Exit codes",
            "",
            NOTE,
            "",
            "| code | meaning |",
            "|---|---|",
            *rows,
            "",
            "After code 8, the bundle is kept as `MODEL.failed` beside its place, for inspection.",
            "After a signal, no incomplete bundle is left in the output directory.",
            "",
            "`make` ends with 2 whenever a command fails. A script that needs these codes calls `.venv/bin/bundler`.",
            "The device program has [codes of its own](bundle-format.md#the-device-program).",
            "",
        ]
    )


# ---- make


def make_variables() -> str:
    lists = {name: _pairs(name) for name in ("BUNDLE_OPTIONS", "BUNDLE_FLAGS", "VERIFY_OPTIONS", "VERIFY_FLAGS")}
    lines = [
        "# Variables of make",
        "",
        NOTE,
        "",
        "`make` lists its targets. These variables of `make bundle` and `make verify` become options of",
        "[`bundler bundle` and `bundler verify`](command-line.md); both are read from the Makefile.",
        "",
        "| variable | `make bundle` | `make verify` |",
        "|---|---|---|",
        "| `MODEL` | the argument of `bundler bundle` (default `mobilenet_v2`) | |",
    ]
    bundle = {**lists["BUNDLE_OPTIONS"], **{f"{name}=1": option for name, option in lists["BUNDLE_FLAGS"].items()}}
    verify = {**lists["VERIFY_OPTIONS"], **{f"{name}=1": option for name, option in lists["VERIFY_FLAGS"].items()}}
    for name in (*bundle, *(name for name in verify if name not in bundle)):
        cells = (f"`{table[name]}`" if name in table else "" for table in (bundle, verify))
        lines.append(f"| `{name}` | {' | '.join(cells)} |".replace("|  |", "| |"))
    lines += [
        "",
        "The defaults are `TARGET=arm64` and `OUTPUT=dist`. `MODE` may hold several modes: `MODE='fp32 int8-qat'`.",
        "`PREPROCESSING` holds further options as they are typed: `PREPROCESSING='--mean 0 --std 1'`.",
        "Variables of the environment count as well as those on the command line of `make`.",
        "",
        "| variable | meaning |",
        "|---|---|",
        "| `PYTHON` | the Python that makes `.venv`, 3.11 or newer (default `python3`) |",
        "| `BUNDLER_NO_SYSTEM=1` | change nothing outside of the repository; the commands to type are printed instead |",
        "| `BUNDLER_REQUIRE_ENGINE=1` | tests that need a container engine fail without one, instead of being skipped |",
        "| `CI` | `make test` does not ask before it installs system packages |",
        "",
    ]
    return "\n".join(lines)


def _pairs(name: str) -> dict[str, str]:
    """Return a list of the Makefile: variable to option."""
    command = ["make", "--no-print-directory", "--silent", "--file", "-", "print"]
    program = f"include Makefile\nprint:\n\t@echo $({name})\n"
    run = subprocess.run(command, input=program, capture_output=True, text=True, check=True, cwd=ROOT)
    return {variable: option for variable, _, option in (word.partition("=") for word in run.stdout.split())}


# ---- models


def models() -> str:
    return "\n".join(
        [
            "# Supported models",
            "",
            NOTE,
            "",
            *scope_table(),
            "",
            "Pixels are the input size without `--input-size`. All graphs have ONNX opset 13.",
            "`fp32` and `int8-ptq` are built by default,",
            "`int8-qat` with [`--mode int8-qat`](../how-to/quantization-aware-training.md).",
            "Models of your own and of other packages are [plug-ins](../how-to/own-model.md).",
            "[Detectors](detectors.md) have a page of their own.",
            "",
            "A quantizable model that was not converted is a float model,",
            "and equal to its plain parent (torchvision's; for YOLO, ours) bit for bit.",
            "In INT8, no classifier computes anything in float between the Quantize of its input and its logits.",
            "What a detector computes in float is named in the manifest (`float_operators`).",
            "",
        ]
    )


def scope_table() -> list[str]:
    """Return the table of the specification as Markdown, one line per row."""
    return ["| row | models | pixels | quantization | FP32 ONNX | INT8 ONNX |", "|---|---|---|---|---|---|", *map(_row, SCOPE)]


def _row(row: ScopeRow) -> str:
    names = ", ".join(f"`{variant.name}`" for variant in row.variants)
    pixels = ", ".join(sorted({str(variant.crop) for variant in row.variants}))
    (scopes,) = {variant.int8_scopes for variant in row.variants}
    int8 = {("whole",): "yes", ("backbone", "whole"): "yes: the backbone, or all but the decoding"}[scopes]
    return f"| {row.name} | {names} | {pixels} | PTQ, QAT | yes | {int8} |"


# ---- decisions


def decisions() -> str:
    pages = [path for path in sorted((ROOT / "docs" / "decisions").glob("*.md")) if path.name != "README.md"]
    titles = (path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ") for path in pages)
    lines = [
        "# Decisions",
        "",
        NOTE,
        "",
        "Each page states the context, the alternatives that were considered, the decision and its consequences.",
        "A decision that is replaced keeps its page and names its successor.",
        "",
        *(f"- [{title}]({path.name})" for path, title in zip(pages, titles, strict=True)),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    for path, text in pages().items():
        (ROOT / "docs" / path).write_text(text, encoding="utf-8")
