"""`bundler doctor`: what works here, and what to do."""

from __future__ import annotations

from dataclasses import asdict

import click

from bundler import console
from bundler.cli.failures import INCOMPLETE
from bundler.pipeline.diagnosis import diagnose

__all__ = ["command"]


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def command(ctx: click.Context, *, as_json: bool) -> None:
    """Check the container engine, the emulated CPUs of every target, the disk, and the versions.

    Exit code 0 when all works, 3 when something cannot be run here.
    """
    findings = diagnose()
    if as_json:
        console.json_result([asdict(finding) for finding in findings])
    else:
        rows = [(finding.status, finding.subject, finding.detail, finding.next_step) for finding in findings]
        console.table(("status", "what", "found", "next step"), rows)
    if any(finding.status != "ok" for finding in findings):
        ctx.exit(INCOMPLETE)
