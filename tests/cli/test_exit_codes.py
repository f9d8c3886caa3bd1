"""The table of exit codes: complete, and the one that help shows."""

from __future__ import annotations

import click

from bundler.cli import cli
from bundler.cli.exit_codes import EXIT_CODES, INCOMPLETE, INTERRUPTED, NOBODY_READS, exit_code_lines
from bundler.interruption import SIGNALS


def test_every_signal_and_outcome_has_a_meaning() -> None:
    assert {0, 1, 2, INCOMPLETE, INTERRUPTED, NOBODY_READS} <= EXIT_CODES.keys()
    assert {128 + number for number in SIGNALS} <= EXIT_CODES.keys()
    assert list(EXIT_CODES) == sorted(EXIT_CODES)


def test_help_lists_every_exit_code() -> None:
    text = cli.get_help(click.Context(cli, info_name="bundler", **cli.context_settings))
    lines = [line.strip() for line in text.splitlines()]
    assert [line for line in map(str.strip, exit_code_lines()) if line not in lines] == []
