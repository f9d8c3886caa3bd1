"""`bundler models`: list the scope table and plug-in models."""

from __future__ import annotations

from collections.abc import Iterator

import click

from bundler import console
from bundler.models.registry import models
from bundler.models.specs import ModelSpec
from bundler.models.user_models import BrokenModel, user_models
from bundler.preprocessing_request import pixels_text

__all__ = ["command"]


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def command(*, as_json: bool) -> None:
    """List the supported models.

    Models of other packages (entry points of the group `bundler.models`) are included.
    """
    own = user_models(taken=models())
    listed = [*_listed(), *((model.package, model.spec) for model in own if not isinstance(model, BrokenModel))]
    broken = [model for model in own if isinstance(model, BrokenModel)]
    if as_json:
        documents = [
            {
                "name": spec.name,
                "row": row,
                "task": spec.task,
                "input_size": spec.crop,
                "modes": spec.modes,
                "int8_scopes": spec.int8_scopes,
                "reason": "",
            }
            for row, spec in listed
        ]
        unusable = [
            {"name": model.name, "row": model.package, "modes": [], "int8_scopes": [], "reason": model.reason}
            for model in broken
        ]
        console.json_result([*documents, *unusable])
        return
    rows = [
        (spec.name, row, pixels_text(spec.crop), ", ".join(spec.modes), ", ".join(spec.int8_scopes)) for row, spec in listed
    ]
    console.table(("model", "row", "pixels", "modes", "INT8"), rows)
    for model in broken:
        console.warn(f"{model.name} of {model.package} cannot be used: {model.reason}")


def _listed() -> Iterator[tuple[str, ModelSpec]]:
    for row, spec in models().values():
        yield row.name, spec
