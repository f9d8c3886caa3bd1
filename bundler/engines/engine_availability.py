"""The container engine of this machine, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bundler.engines.container_engine import Engine, connect
from bundler.errors import EngineUnavailableError

__all__ = ["NoEngine", "available_engine"]


@dataclass(frozen=True, kw_only=True)
class NoEngine:
    """No container engine answers: why, and what to do about it."""

    reason: str
    next_step: str


@contextmanager
def available_engine() -> Iterator[Engine | NoEngine]:
    """Connect to the container engine for the duration of the block; give the reason if none answers.

    Raises:
        EngineError: an engine answers, and its architecture is not supported.
    """
    with ExitStack() as stack:
        try:
            engine: Engine | NoEngine = stack.enter_context(connect())
        except EngineUnavailableError as error:
            engine = NoEngine(reason=error.message, next_step=error.next_step)
        yield engine
