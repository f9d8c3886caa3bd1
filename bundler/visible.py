"""Text from outside (file names, tensor names, messages of other programs) with every invisible character written out."""

from __future__ import annotations

__all__ = ["visible"]


def visible(text: str) -> str:
    r"""Return `text` on one line, in which no character controls a terminal or the direction of writing.

    What Unicode calls "Other" or "Separator", except the space, is written as Python writes it in a string literal: ESC as
    `\x1b`, a line feed as `\n`, a right-to-left override as `\u202e`, and a byte of a file name that is not UTF-8 (a lone
    surrogate, PEP 383) as `\udcff`. All other text stays as it is.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii") for character in text
    )
