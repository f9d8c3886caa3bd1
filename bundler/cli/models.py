"""`bundler models`: the scope table."""

from __future__ import annotations

import click

from bundler import console
from bundler.models.registry import SCOPE

__all__ = ["command"]


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def command(*, as_json: bool) -> None:
    """List every model of the scope table: its variants and modes, or why it offers none yet."""
    if as_json:
        console.json_result(
            [
                {
                    "name": variant.name,
                    "row": row.name,
                    "input_size": variant.crop,
                    "modes": row.modes,
                    "int8_scope": row.int8_scope,
                    "built": row.built,
                    "reason": row.reason,
                }
                for row in SCOPE
                for variant in row.variants
            ]
        )
        return
    rows = [
        (variant.name, row.name, str(variant.crop), ", ".join(row.modes) or f"- ({row.reason})")
        for row in SCOPE
        for variant in row.variants
    ]
    console.table(("model", "row", "pixels", "modes"), rows)
