"""The exit codes of `bundler`, as `bundler --help` and docs/reference/exit-codes.md list them."""

from __future__ import annotations

from typing import Final

__all__ = ["EXIT_CODES", "INCOMPLETE", "INTERRUPTED", "NOBODY_READS", "exit_code_lines"]

INCOMPLETE: Final = 3
INTERRUPTED: Final = 130  # 128 + SIGINT
NOBODY_READS: Final = 141  # 128 + SIGPIPE

EXIT_CODES: Final[dict[int, str]] = {
    0: "success: everything that was to be executed was executed and passed",
    1: "unexpected error (--debug prints the traceback)",
    2: "invalid arguments",
    3: "completed, but something could not be executed on this machine; the manifest states what and why",
    4: "unknown model or target, unusable model of another package, or invalid target profile",
    5: "the model does not support this mode",
    6: "weights cannot be read, or belong to another network",
    7: "no usable calibration images, or labelled images that are damaged or do not fit the network",
    8: "verification failed: a mode gave wrong results on a CPU",
    9: "the container engine, an emulator or the device image failed",
    10: "exported ONNX graph failed validation",
    11: "bundle missing or damaged",
    12: "a file cannot be read, an output directory is not writable, or the disk is full",
    13: "an INT8 mode loses more accuracy than --max-drop allows",
    14: "training cannot continue or be resumed",
    129: "ended by SIGHUP, after clean-up",
    130: "ended by SIGINT (Ctrl-C), after clean-up",
    141: "standard output or standard error was closed by its reader (SIGPIPE)",
    143: "ended by SIGTERM, after clean-up",
}


def exit_code_lines() -> list[str]:
    """Return one aligned line per exit code."""
    return [f"{code:>5}  {meaning}" for code, meaning in EXIT_CODES.items()]
