"""DeviceError: a failure of the device program that a user can correct; and the exit codes of the program."""

from __future__ import annotations

from typing import Final

__all__ = ["CANNOT_RUN", "DAMAGED", "INSTALL", "PASSED", "UNREAD", "UNUSABLE", "WRONG", "DeviceError", "first_line"]

PASSED: Final = 0
WRONG: Final = 1  # a known answer or a mode failed
UNUSABLE: Final = 2  # the command line or an input file
DAMAGED: Final = 3  # a file of the bundle is missing or changed
CANNOT_RUN: Final = 4  # numpy or onnxruntime is missing, too old, or crashes on this CPU
UNREAD: Final = 141  # the reader of the output closed it (128 + SIGPIPE)

INSTALL: Final = "Install the packages that requirements.txt lists: python3 -m pip install -r requirements.txt"


class DeviceError(Exception):
    """A failure with its exit code, and what the user can do next."""

    def __init__(self, exit_code: int, message: str, next_step: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.next_step = next_step


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
