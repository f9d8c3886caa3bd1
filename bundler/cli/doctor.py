"""`bundler doctor`: what works here, what to do, and what killed commands left."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from bundler import console
from bundler.cli.failures import INCOMPLETE
from bundler.diagnosis.machine_checks import clean_up, diagnose

__all__ = ["command"]


@click.command("doctor")
@click.option("--clean", is_flag=True, help="Remove what killed commands left, and check nothing else.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("dist"),
    show_default=True,
    metavar="DIR",
    help="Where bundles are put, and leftovers are searched for.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def command(ctx: click.Context, *, clean: bool, output: Path, as_json: bool) -> None:
    """Check the container engine, the emulated CPUs of every target, the disk, the versions, and what killed commands left.

    Leftovers are work folders and unfinished placings below --output, half-made entries of the cache, and containers and
    temporary images in the engine. What a running command uses is none of them.

    Exit code 0 when all works, 3 when something cannot be run here, or a leftover not be removed.
    """
    findings = clean_up(output) if clean else diagnose(output)
    if as_json:
        console.json_result([asdict(finding) for finding in findings])
    else:
        rows = [(finding.status, finding.subject, finding.detail, finding.next_step) for finding in findings]
        console.table(("status", "what", "found", "next step"), rows)
    if any(finding.status in ("missing", "not removed") for finding in findings):
        ctx.exit(INCOMPLETE)
