"""Run the work in a child process, so that a crash of a library is reported with its signal."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

from .device_error import CANNOT_RUN, UNREAD

__all__ = ["end_quietly_on_closed_pipe", "supervised"]


def end_quietly_on_closed_pipe() -> None:
    """Let SIGPIPE end this process and its children without a traceback, as it ends other programs in a pipeline."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def supervised(work: Callable[[], int]) -> int:
    """Return the exit code of `work`, which runs in a child process.

    The first process of a container is not ended by its own crash: without this one in its place the container would hang.
    The child ends when this process ends, even by SIGKILL.
    """
    lifeline, held = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
        os.close(held)
        threading.Thread(target=end_with_parent, args=(lifeline,), daemon=True).start()
        return work()

    stopped: list[int] = []

    def stop(number: int, _frame: object) -> None:
        stopped.append(number)
        os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if stopped:
        return 128 + stopped[0]
    if exit_code == -signal.SIGPIPE:
        return UNREAD
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        cause = "out of memory?" if name == "SIGKILL" else "numpy or onnxruntime does not work on this CPU or emulator"
        print(f"error: the process was ended by {name}: {cause}", file=sys.stderr)
        print(
            "  next: `python3 device.pyz probe` describes this machine; README.md lists where this bundle was verified.",
            file=sys.stderr,
        )
        return CANNOT_RUN
    return exit_code


def end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)  # returns when nobody holds the other end: the parent is gone
    os._exit(1)
