"""The command line: one command per file; each parses, calls the library, and prints."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bundler.interruption import SIGNALS, ended_without_traceback, install_signal_handlers

with ended_without_traceback():  # they take a tenth of a second
    import click

    from bundler.cli.exit_codes import NOBODY_READS, exit_code_lines
    from bundler.cli.failures import report, say_given_up

__all__ = ["main"]

# The first sentence of each command's help. A command's module is imported when the command is asked for: `bundler --help`
# needs neither torch nor docker (tests/cli/test_commands.py compares the sentences).
_COMMANDS = {
    "bundle": "Build, quantize, verify and package a model for a target.",
    "verify": "Verify existing bundles again on the CPUs of a target.",
    "inspect": "Show the manifest of a bundle.",
    "models": "List the supported models.",
    "targets": "List the target profiles.",
    "doctor": "Check the container engine, the emulators and the installed versions.",
}
_MODULES = {"models": "list_models", "targets": "list_targets"}


@contextmanager
def _ended_where_nobody_reads() -> Iterator[None]:
    """End with the exit code of SIGPIPE if the reader of a pipe has closed it; click would end with exit code 1."""
    try:
        yield
    except BrokenPipeError:
        raise SystemExit(NOBODY_READS) from None


class _LazyGroup(click.Group):
    """Imports a command's module when it is asked for (click's documentation, "Lazily Loading Subcommands")."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with _ended_where_nobody_reads():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _ended_where_nobody_reads():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module = _MODULES.get(cmd_name, cmd_name)
        command: click.Command = importlib.import_module(f"bundler.cli.{module}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


def _show_version(ctx: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        click.echo(f"bundler {importlib.import_module('bundler').__version__}")
        ctx.exit()


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="\n".join(("\b", "Exit codes:", *exit_code_lines())),
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version and exit."
)
@click.option("--debug", is_flag=True, help="Print the traceback of a failure.")
def cli(debug: bool) -> None:
    """Quantize vision models to INT8, export them to ONNX, verify the files on the target's CPUs, and package them.

    \b
    Examples:
      bundler models
      bundler bundle mobilenet_v2 --target arm64 --calibration images/
      bundler verify --target arm64 dist/arm64-qnnpack/mobilenet_v2
    """


def main() -> None:
    """Run the command line. This is the only place that turns a failure into a message, a next step and an exit code."""
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the terminal's encoding may lack a character
    debug = "--debug" in sys.argv[1:2]
    try:
        install_signal_handlers(say_given_up)
        code: Any = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001  every failure becomes an exit code
        code = report(error, debug=debug)
    for number in SIGNALS:  # the work is done and reported
        signal.signal(number, signal.SIG_IGN)
    _close_standard_streams()
    sys.exit(code if isinstance(code, int) else 0)


def _open_standard_streams() -> None:
    """Open streams that were closed (`>&-`) on /dev/null; otherwise the next file opened would become standard output."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115  for the rest of the process


def _close_standard_streams() -> None:
    """Flush the streams. A stream that cannot be written was reported already; Python would report it again at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
