"""Rendering of `templates/`; a name that a template uses and nobody gave is an error."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bundler.resources import resource

__all__ = ["render"]


def render(template: str, context: dict[str, Any]) -> str:
    """Return the text of `templates/{template}`; nothing is escaped, since nothing here is HTML."""
    environment = Environment(
        loader=FileSystemLoader(resource("templates")),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(context)
