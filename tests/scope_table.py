"""The README's scope table, made from the registry: `python tests/scope_table.py` writes it anew, a test compares."""

from __future__ import annotations

from pathlib import Path

from bundler.models.registry import SCOPE, ScopeRow

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- the scope table: python tests/scope_table.py -->\n", "<!-- end of the scope table -->\n"


def scope_table() -> str:
    """Return the table as Markdown, a line for each row of the specification."""
    heading = ["| row | models | pixels | quantization | FP32 ONNX | INT8 ONNX |", "|---|---|---|---|---|---|"]
    lines = [*heading, *map(_line, SCOPE)]
    return "\n".join(lines) + "\n"


def _line(row: ScopeRow) -> str:
    names = ", ".join(f"`{variant.name}`" for variant in row.variants)
    pixels = ", ".join(sorted({str(variant.crop) for variant in row.variants}))
    (scopes,) = {variant.int8_scopes for variant in row.variants}
    int8 = {("whole",): "yes", ("backbone", "whole"): "yes: the backbone, or all but the decoding"}[scopes]
    return f"| {row.name} | {names} | {pixels} | PTQ, QAT | yes | {int8} |"


def parts(text: str) -> tuple[str, str, str]:
    """Return what stands before the table, the table, and what stands behind it."""
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    return before, table, after


if __name__ == "__main__":
    before, _, after = parts(README.read_text(encoding="utf-8"))
    README.write_text(before + BEGIN + scope_table() + END + after, encoding="utf-8")
