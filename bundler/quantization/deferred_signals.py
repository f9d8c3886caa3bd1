"""DeferredSignals: signals are handled between two training steps, when the state of the training is consistent."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

__all__ = ["DeferredSignals"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DeferredSignals:
    """A context in which the first signal is passed to its original handler by `deliver`, and a second one immediately.

    Signals whose handler is not a Python function (ignored, or the default action) are not changed. In other threads than the
    main one nothing is changed, because Python handles signals in the main thread only.
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
                    signal.signal(number, self._defer)
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        handlers, self._handlers = self._handlers, {}
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if error is None and self._pending is not None:
            handlers[self._pending](self._pending, None)

    def _defer(self, number: int, frame: FrameType | None) -> None:
        if self._pending is None:
            self._pending = number
        else:
            self._handlers[number](number, frame)

    def deliver(self) -> None:
        """Call the original handler of a pending signal; it usually raises `KeyboardInterrupt`."""
        if self._pending is not None:
            number, self._pending = self._pending, None
            self._handlers[number](number, None)

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Restore the original handlers while the block runs, for work that can be repeated."""
        self.deliver()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        try:
            yield
        finally:
            for number in self._handlers:
                signal.signal(number, self._defer)
