"""Darknet's `.cfg` files: one section in square brackets for each layer, with one `key=value` per line."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from bundler.errors import CheckpointError

__all__ = ["MOST_BYTES", "DarknetArchitecture", "DarknetSection", "parse_cfg"]

MOST_BYTES = 2**20  # yolov4.cfg has 12,000
_ALIASES = {"conv": "convolutional", "max": "maxpool", "network": "net"}
_NOT_A_CFG = "Pass the .cfg file that the weights were trained with (yolov3.cfg, yolov4.cfg or a variant of it)."
_EDIT = "Restore the file with which the weights were trained, and run the command again."


@dataclass(frozen=True, kw_only=True)
class DarknetArchitecture:
    """Settings of a YOLOv3 or YOLOv4 that are in a cfg, but not in a `.weights` file.

    Args:
        anchors: widths and heights in pixels, [scale][anchor][2], for strides 8, 16 and 32.
        xy_scales: `scale_x_y` for strides 8, 16 and 32.
        activations: of the convolutions with a BatchNorm, in the order of the cfg; None for those of the published network.
    """

    anchors: tuple[tuple[tuple[float, float], ...], ...]
    xy_scales: tuple[float, ...]
    activations: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class DarknetSection:
    """A section; keys have the values and lines of their first occurrence, as in Darknet.

    The methods return a default if a key is missing. They raise a CheckpointError with the line number if a value has another
    type than Darknet expects, or if the key occurs again with another value.
    """

    source: str
    kind: str
    line: int
    options: Mapping[str, tuple[str, int]]
    contradictions: Mapping[str, tuple[str, int]]

    def line_of(self, key: str) -> int:
        return self.options.get(key, ("", self.line))[1]

    def text(self, key: str, default: str) -> str:
        if key in self.contradictions:
            second, again = self.contradictions[key]
            reason = f"{key} is {self.options[key][0][:40]} here and {second[:40]} in line {again} of the same section"
            raise self.error(key, reason, next_step="Remove one of them; Darknet reads the first.")
        return self.options.get(key, (default, 0))[0]

    def integer(self, key: str, default: int) -> int:
        text = self.text(key, str(default))
        if not re.fullmatch(r"[+-]?\d{1,9}", text):
            raise self.error(key, f"{key}={text[:40]} is not an integer")
        return int(text)

    def number(self, key: str, default: float) -> float:
        return self._number(key, self.text(key, repr(default)))

    def integers(self, key: str) -> tuple[int, ...]:
        """Return comma-separated integers; an empty tuple if the key is missing."""
        parts = self._parts(key)
        if not all(re.fullmatch(r"[+-]?\d{1,9}", part) for part in parts):
            raise self.error(key, f"{key}={self.text(key, '')[:40]} is not a list of integers")
        return tuple(map(int, parts))

    def numbers(self, key: str) -> tuple[float, ...]:
        """Return comma-separated numbers; an empty tuple if the key is missing."""
        return tuple(self._number(key, part) for part in self._parts(key))

    def error(self, key: str, reason: str, *, next_step: str = _EDIT) -> CheckpointError:
        """Return an error with the line of a key, or of the section if the key is missing."""
        return CheckpointError(f"{self.source}, line {self.line_of(key)}: {reason}", next_step=next_step)

    def _parts(self, key: str) -> list[str]:
        return [part for part in self.text(key, "").split(",") if part]

    def _number(self, key: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.error(key, f"{key}={text[:40]} is not a number")
        return value


def parse_cfg(content: bytes, *, source: str) -> tuple[DarknetSection, ...]:
    """Return the sections of a cfg in order; `source` is the file's name in messages.

    As in Darknet, whitespace is ignored, and lines that begin with # or ; are comments. A comment after a value is removed too.

    Raises:
        CheckpointError: it is not a text file, is too long, or has a line that is neither a section, a comment nor `key=value`.
    """
    sections: list[_Lines] = []
    for number, whole in enumerate(_text(content, source).splitlines(), start=1):
        line = re.sub(r"[#;].*", "", "".join(whole.split()))
        if line.startswith("["):
            kind = line.removeprefix("[").removesuffix("]")
            if not line.endswith("]"):
                raise CheckpointError(f"{source}, line {number}: {line[:40]} has no closing bracket", next_step=_EDIT)
            sections.append(_Lines(kind=_ALIASES.get(kind, kind), line=number))
        elif line:
            key, equals, value = line.partition("=")
            if not sections or not equals or not key or not value:
                reason = "is not key=value" if sections else "precedes the first section"
                raise CheckpointError(f"{source}, line {number}: {line[:40]} {reason}", next_step=_NOT_A_CFG)
            sections[-1].add(key, value, number)
    if not sections or sections[0].kind != "net":
        raise CheckpointError(f"{source} does not begin with the section [net]", next_step=_NOT_A_CFG)
    return tuple(
        DarknetSection(
            source=source,
            kind=lines.kind,
            line=lines.line,
            options=lines.options,
            contradictions=lines.contradictions,
        )
        for lines in sections
    )


@dataclass(kw_only=True)
class _Lines:
    """A section while it is being read."""

    kind: str
    line: int
    options: dict[str, tuple[str, int]] = field(default_factory=dict)
    contradictions: dict[str, tuple[str, int]] = field(default_factory=dict)

    def add(self, key: str, value: str, number: int) -> None:
        first, _ = self.options.setdefault(key, (value, number))
        if first != value:
            self.contradictions.setdefault(key, (value, number))


def _text(content: bytes, source: str) -> str:
    if len(content) > MOST_BYTES:
        raise CheckpointError(
            f"{source} has {len(content):,} bytes; the limit for a cfg is {MOST_BYTES:,}", next_step=_NOT_A_CFG
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{source} is not a text file", next_step=_NOT_A_CFG) from error
    if not all(character.isprintable() or character.isspace() for character in text):
        raise CheckpointError(f"{source} is not a text file: it contains control characters", next_step=_NOT_A_CFG)
    return text
