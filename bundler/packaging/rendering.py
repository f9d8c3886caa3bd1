"""Rendering of `templates/`; a name that a template uses and nobody gave is an error."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bundler.resources import resource

__all__ = ["render"]


def render(template: str, context: dict[str, Any]) -> str:
    """Return the text of `templates/{template}`; what goes into HTML is escaped, and nothing else."""
    environment = Environment(
        loader=FileSystemLoader(resource("templates")),
        undefined=StrictUndefined,
        autoescape=template.endswith(".html.j2"),
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(context)
