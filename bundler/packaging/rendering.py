"""Rendering of `templates/`: whatever is inserted is escaped for the language of the file; an unknown name is an error."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bundler.resources import resource
from bundler.visible import visible

__all__ = ["markdown", "render"]

# Characters that begin something in CommonMark, in GitHub's tables and formulas, or in HTML; `_` does at the edge of a word.
_MARKDOWN = str.maketrans(
    {**{character: f"\\{character}" for character in "\\`*[]|~$#@"}, "<": "&lt;", ">": "&gt;", "&": "&amp;"}
)


def render(template: str, context: dict[str, Any]) -> str:
    """Return the text of `templates/{template}`.

    Control characters and line breaks in what is inserted are written out (bundler/visible.py). In HTML all of it is escaped.
    The other formats take names and numbers, whose alphabets (bundler/manifest/records.py, bundler/targets.py) hold nothing
    that ends a string or begins an option; text for Markdown has to be passed through `markdown` before.
    """
    environment = Environment(
        loader=FileSystemLoader(resource("templates")),
        undefined=StrictUndefined,
        autoescape=template.endswith(".html.j2"),
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    return environment.get_template(template).render(context)


def markdown(text: str) -> str:
    """Return text that Markdown shows as it is: no markup, HTML, link or cell of a table begins or ends in it."""
    escaped = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", visible(text).translate(_MARKDOWN))
    # GitHub makes links of bare addresses.
    return re.sub(r"(?i)\bwww\.", r"www\\.", escaped.replace("://", ":\\//"))


def _visible(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
