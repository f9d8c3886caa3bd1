"""`bundler doctor`: check this machine, and remove what killed commands left."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from bundler import console
from bundler.cli.failures import INCOMPLETE
from bundler.cli.output_option import output_option
from bundler.diagnosis.machine_checks import clean_up, diagnose

__all__ = ["command"]


@click.command("doctor")
@click.option("--clean", is_flag=True, help="Remove what killed commands left, without checking anything else.")
@output_option("Directory of bundles; searched for leftovers.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def command(ctx: click.Context, *, clean: bool, output: Path, as_json: bool) -> None:
    """Check the container engine, the emulators and the installed versions.

    Also checked are the emulated CPUs of every target, the free disk space, and leftovers of killed commands: temporary
    directories and incomplete installations below --output, incomplete cache entries, and containers and temporary images in
    the engine. What a running command uses is not a leftover.

    Exit code 0 if everything works, 3 if something cannot be executed on this machine or a leftover cannot be removed.

    \b
    Examples:
      bundler doctor
      bundler doctor --clean
    """
    findings = clean_up(output) if clean else diagnose(output)
    if as_json:
        console.json_result([asdict(finding) for finding in findings])
    else:
        rows = [(finding.status, finding.subject, finding.detail, finding.next_step) for finding in findings]
        console.table(("status", "check", "found", "next step"), rows)
    if any(finding.status in ("missing", "not removed") for finding in findings):
        ctx.exit(INCOMPLETE)
