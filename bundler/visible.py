"""Text from untrusted sources (file names, tensor names, messages of other programs) with control characters escaped."""

from __future__ import annotations

__all__ = ["visible"]


def visible(text: object, longest: int | None = None) -> str:
    r"""Return `str(text)` on one line, without characters that control a terminal or the direction of writing.

    Characters of Unicode's categories "Other" and "Separator", except the space, are escaped as in a Python string literal:
    ESC as `\x1b`, a line feed as `\n`, a right-to-left override as `\u202e`, and a byte of a file name that is not UTF-8 (a
    lone surrogate, PEP 383) as `\udcff`. All other characters are unchanged.

    Args:
        text: an object to be shown in a message, a document or on a terminal.
        longest: characters of the text after which it is cut off and an ellipsis is added; None for no limit.
    """
    line = str(text)
    if longest is not None and len(line) > longest:
        line = f"{line[:longest]}…"
    if line.isprintable():
        return line
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii") for character in line
    )
