"""`bundler targets`: the target profiles."""

from __future__ import annotations

import click

from bundler import console
from bundler.targets import load_targets

__all__ = ["command"]


@click.command("targets")
@click.option("--json", "as_json", is_flag=True, help="Print the profiles as JSON.")
def command(*, as_json: bool) -> None:
    """List the target profiles.

    For each: aliases, platform, torch's quantized engine, and the CPUs that bundles are verified on.
    """
    targets = load_targets()
    if as_json:
        console.json_result([target.model_dump(mode="json") for target in targets])
        return
    rows = [
        (
            target.name,
            ", ".join(target.aliases),
            target.platform,
            target.quantization.engine,
            ", ".join(cpu.name for cpu in target.verification.cpus),
            target.summary,
        )
        for target in targets
    ]
    console.table(("target", "aliases", "platform", "engine", "verified on", "summary"), rows)
