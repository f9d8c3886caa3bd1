"""Handling of SIGINT, SIGTERM and SIGHUP: the first one ends the command with clean-up, later ones do not interrupt it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["SIGNALS", "InterruptedBySignal", "defer_signals", "ended_without_traceback", "install_signal_handlers"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CLEAN_UP_SECONDS = 60.0  # more than all waits for an engine that does not answer


class InterruptedBySignal(KeyboardInterrupt):
    """A signal ended the command; `exit_code` is 128 plus the signal's number, as in a shell."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class _State:
    """The state that the handler and `defer_signals` share. Only the main thread handles signals."""

    def __init__(self) -> None:
        self.shields = 0
        self.waiting: int | None = None  # the signal that arrived in a defer_signals block
        self.ending = False
        self.on_give_up: Callable[[], None] = lambda: None


_state = _State()


def install_signal_handlers(on_give_up: Callable[[], None] = lambda: None) -> None:
    """Install handlers: the first of the signals raises InterruptedBySignal in the main thread, later ones are ignored.

    If the process still runs `CLEAN_UP_SECONDS` after the first one, `on_give_up` is called in another thread, and the process
    exits without further clean-up.
    """
    _state.on_give_up = on_give_up
    for number in SIGNALS:
        ignored = signal.getsignal(number) is signal.SIG_IGN  # by nohup, or by a shell for background jobs
        if not ignored or number == signal.SIGTERM:
            signal.signal(number, _handle)


@contextmanager
def ended_without_traceback() -> Iterator[None]:
    """Let SIGINT end the process as the system does; for imports, which leave nothing to clean up.

    Another handler than Python's own stays, and in other threads than the main one it does nothing.
    """
    own = (
        threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if own:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if own:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Defer signals until the block ends; for short clean-up that must not be interrupted.

    Without `install_signal_handlers`, and in other threads than the main one, it has no effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.shields += 1
    try:
        yield
    finally:
        _state.shields -= 1
        if _state.shields == 0 and _state.waiting is not None:
            number, _state.waiting = _state.waiting, None
            raise InterruptedBySignal(number)


def _handle(number: int, _frame: FrameType | None) -> None:
    if _state.ending:
        return
    _state.ending = True
    watch = threading.Timer(CLEAN_UP_SECONDS, _give_up, args=(number,))
    watch.daemon = True
    watch.start()
    if _state.shields:
        _state.waiting = number
        return
    raise InterruptedBySignal(number)


def _give_up(number: int) -> None:
    try:
        _state.on_give_up()
    finally:
        os._exit(128 + number)
