"""Trials of other preprocessing, within a limit of time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

__all__ = ["SECONDS", "Trials"]

Item = TypeVar("Item")

SECONDS = 60.0  # after which no more is tried


@dataclass
class Trials:
    """How many were finished, and how long they took."""

    started: float = field(default_factory=time.monotonic)
    finished: int = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def in_time(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items until the time is over."""
        for item in items:
            if self.seconds > SECONDS:
                return
            yield item

    def __str__(self) -> str:
        limit = f", of no more than {SECONDS:.0f} s" if self.seconds > SECONDS else ""
        return f"{self.finished} other preprocessings in {self.seconds:.0f} s{limit}"
