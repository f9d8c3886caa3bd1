"""The exclude lists in docker/: patterns of files that an image does not contain, with the reasons."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import translate
from pathlib import Path

__all__ = ["ExcludeList"]


@dataclass(frozen=True)
class ExcludeList:
    """Patterns in the order of the file, each with whether it excludes; the last one that matches a path decides."""

    rules: tuple[tuple[re.Pattern[str], bool], ...]

    @classmethod
    def read(cls, path: Path) -> ExcludeList:
        """Read lines of the form `PATTERN  # reason`; `!PATTERN` includes what an earlier pattern excluded.

        Raises:
            OSError: the file cannot be read.
        """
        lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
        return cls(tuple((re.compile(translate(line.removeprefix("!"))), not line.startswith("!")) for line in lines if line))

    def excludes(self, path: str) -> bool:
        """Return whether `path`, without a leading slash, is excluded."""
        return next((excluded for pattern, excluded in reversed(self.rules) if pattern.match(path)), False)
