"""Render the templates in `templates/`: inserted text is escaped for the output format; undefined names raise an error."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bundler.resources import resource
from bundler.visible import visible

__all__ = ["markdown", "render"]

# Characters with a meaning in CommonMark, in GitHub's tables and formulas, or in HTML; `_` has one at the edge of a word.
_MARKDOWN = str.maketrans(
    {**{character: f"\\{character}" for character in "\\`*[]|~$#@"}, "<": "&lt;", ">": "&gt;", "&": "&amp;"}
)


def render(template: str, context: dict[str, Any]) -> str:
    """Return the text of `templates/{template}`.

    Control characters and line breaks in inserted text are escaped (bundler/visible.py), and HTML is in `.html.j2`. The other
    formats get names and numbers only: their schemas (bundler/manifest/records.py, bundler/targets.py) exclude characters that
    end a string or begin an option. Free text for Markdown must be escaped with `markdown` first.
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
    """Escape text for Markdown: no markup, HTML, link or table cell begins or ends in it."""
    escaped = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", visible(text).translate(_MARKDOWN))
    # GitHub turns bare URLs into links.
    return re.sub(r"(?i)\bwww\.", r"www\\.", escaped.replace("://", ":\\//"))


def _visible(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
