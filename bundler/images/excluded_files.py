"""The exclude lists in docker/: patterns of files that an image does not contain, with the reasons."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property
from pathlib import Path

__all__ = ["ExcludeList"]


@dataclass(frozen=True)
class ExcludeList:
    """Patterns in the order of the file, without the reasons; `!` at the beginning includes instead of excluding."""

    patterns: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> ExcludeList:
        """Read lines of the form `PATTERN  # reason`.

        Raises:
            OSError: the file cannot be read.
        """
        lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
        return cls(tuple(line for line in lines if line))

    def excludes(self, path: str) -> bool:
        """Return whether `path`, without a leading slash, is excluded: the last pattern that matches it decides."""
        return next((excluded for pattern, excluded in self._rules if pattern.match(path)), False)

    @cached_property
    def _rules(self) -> list[tuple[re.Pattern[str], bool]]:
        """The last pattern first, each with whether it excludes."""
        return [(re.compile(translate(line.removeprefix("!"))), not line.startswith("!")) for line in reversed(self.patterns)]
