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

from bundler.interruption import SIGNALS, end_by_signals, ended_without_traceback

with ended_without_traceback():  # they take a tenth of a second
    import click

    from bundler.cli.failures import NOBODY_READS, report, say_given_up

__all__ = ["main"]

# A command's module is imported when the command is asked for: `bundler --help` needs neither torch nor docker.
_COMMANDS = {
    "bundle": "Build, quantize, prove and package a model for a target.",
    "verify": "Prove bundles again, from their own files.",
    "inspect": "Show what a bundle is and where it was executed.",
    "models": "List the models, and what each can be built as.",
    "targets": "List the targets, and the CPUs each is proved on.",
    "doctor": "Check the container engine, the emulators and the versions.",
}
_MODULES = {"models": "list_models", "targets": "list_targets"}


@contextmanager
def _ended_where_nobody_reads() -> Iterator[None]:
    """End as SIGPIPE would, for a pipe that was closed; click would make exit code 1 of it."""
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


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version and exit."
)
@click.option("--debug", is_flag=True, help="Show the traceback of a failure.")
def cli(debug: bool) -> None:
    """Quantize a vision model, prove the INT8 ONNX on the target's CPUs, and ship it as a container.

    \b
    Exit codes:
      0  done, and everything that was to run has run and passed
      1  an unforeseen error (--debug shows where)
      2  the command line is not right
      3  done, but something could not be run here: the manifest says what and why
      4  no such model or target, a package whose model cannot be used, or an unreadable target profile
      5  the model does not have that mode
      6  weights that cannot be read, or belong to another network
      7  no usable pictures for calibration, or labelled pictures that are damaged or do not fit the network
      8  a mode gave wrong results on a CPU
      9  the container engine, an emulator, or an image failed
     10  an exported graph does not hold what is promised
     11  a bundle is missing or damaged
     12  a file or folder cannot be read or written, or the disk is full
     13  an INT8 mode loses more accuracy than --max-drop allows
     14  a training that cannot go on, or be resumed
    129  ended by SIGHUP, after clean-up
    130  ended by SIGINT (Ctrl-C), after clean-up
    141  ended because nobody reads the output any more (SIGPIPE)
    143  ended by SIGTERM, after clean-up
    """


def main() -> None:
    """Run the command line; every failure becomes a message, a next step and an exit code here and nowhere else."""
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal's encoding may lack any character, and must not stop us
    debug = "--debug" in sys.argv[1:2]
    try:
        end_by_signals(say_given_up)
        code: Any = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001  here every failure becomes an exit code
        code = report(error, debug=debug)
    for number in SIGNALS:  # all is done, and reported
        signal.signal(number, signal.SIG_IGN)
    _close_standard_streams()
    sys.exit(code if isinstance(code, int) else 0)


def _open_standard_streams() -> None:
    """Give streams that were closed (`>&-`) a place to go: the next file opened would become standard output otherwise."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115  for the rest of the process


def _close_standard_streams() -> None:
    """Write out what is buffered; where that is not possible it was reported, and Python would do so once more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
