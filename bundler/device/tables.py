"""Text tables with aligned columns."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["figure", "table"]


def figure(value: float | None, form: str, unit: str = "") -> str:
    """Return a number as text, or `-` for one that was not measured."""
    return "-" if value is None else f"{value:{form}}{unit}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return one line for each row; the first row is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
