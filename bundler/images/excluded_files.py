"""Which paths of a tree are left out: a commented list of patterns, read from docker/."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import translate
from pathlib import Path

__all__ = ["CutList"]


@dataclass(frozen=True)
class CutList:
    """Patterns in their order; the last one that matches a path decides."""

    rules: tuple[tuple[re.Pattern[str], bool], ...]

    @classmethod
    def read(cls, path: Path) -> CutList:
        """Read `pattern  # reason` lines; `!pattern` keeps what an earlier one cut."""
        lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
        return cls(tuple((re.compile(translate(line.removeprefix("!"))), not line.startswith("!")) for line in lines if line))

    def cuts(self, path: str) -> bool:
        """Say whether `path`, without a leading slash, is left out."""
        decisions: Iterable[bool] = (cut for pattern, cut in reversed(self.rules) if pattern.match(path))
        return next(iter(decisions), False)
