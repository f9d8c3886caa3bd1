"""Interrupts that wait for the end of a step: between two steps the state of a training is whole and can be saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

__all__ = ["Interruptions"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruptions:
    """While active, hands a first signal to the handler that was there at the next `allowed`; a second one at once.

    Signals whose handler is not a Python function (ignored, or the default that ends the process) are left alone, and so is
    everything outside the main thread, where Python handles no signal.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._pending: int | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._wait)
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        handlers, self._handlers = self._handlers, {}
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if error is None and self._pending is not None:
            handlers[self._pending](self._pending, None)

    def _wait(self, number: int, frame: FrameType | None) -> None:
        if self._pending is None:
            self._pending = number
        else:
            self._handlers[number](number, frame)

    def allowed(self) -> None:
        """Let the handler of a signal that waits do its work, which is to raise `KeyboardInterrupt` as a rule."""
        if self._pending is not None:
            number, self._pending = self._pending, None
            self._handlers[number](number, None)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While the block runs, hand signals on as they come: what is interrupted can be begun again."""
        self.allowed()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        try:
            yield
        finally:
            for number in self._handlers:
                signal.signal(number, self._wait)
