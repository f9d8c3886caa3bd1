"""The errors of this package: each has an exit code, a message and the next step for the user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

__all__ = [
    "AccuracyError",
    "BrokenModelError",
    "BundleDamagedError",
    "BundleNotFoundError",
    "BundlerError",
    "CalibrationError",
    "CheckpointError",
    "ContainerTimeoutError",
    "DataError",
    "EmulatorError",
    "EngineError",
    "EngineUnavailableError",
    "ExportError",
    "ImageError",
    "ImpossibleRequestError",
    "ModeUnavailableError",
    "OtherFilesExecutedError",
    "OutOfSpaceError",
    "OutputError",
    "TargetProfileError",
    "TrainingError",
    "UnknownModelError",
    "UnknownTargetError",
    "UnreadableImageError",
    "UntrustedBundleError",
    "VerificationFailedError",
    "nearest",
]


class BundlerError(Exception):
    """An error with a message and a next step; the exit codes are part of the documented command line interface."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, next_step: str) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step


class ImpossibleRequestError(BundlerError):
    """An argument that is not valid for the model or target."""

    exit_code = 2


class UnknownModelError(BundlerError):
    exit_code = 4

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"no model is called {name!r}", next_step=f"{nearest(name, known)} `bundler models` lists all.")


class UnknownTargetError(BundlerError):
    exit_code = 4

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(
            f"no target is called {name!r}",
            next_step=f"{nearest(name, known)} `bundler targets` lists all; a path to a TOML file works too.",
        )


class TargetProfileError(BundlerError):
    """A target profile that cannot be read or is not valid."""

    exit_code = 4

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is not a target profile: {reason}", next_step="Compare it with targets/x86-fbgemm.toml.")


class ModeUnavailableError(BundlerError):
    """A mode that is not available for this model."""

    exit_code = 5

    def __init__(self, model: str, mode: str, reason: str, available: Iterable[str]) -> None:
        modes = ", ".join(available) or "none yet"
        super().__init__(f"{model} has no mode {mode}: {reason}", next_step=f"Modes of {model}: {modes}.")


class BrokenModelError(BundlerError):
    """A model of another package that cannot be used."""

    exit_code = 4

    def __init__(self, model: str, package: str, reason: str) -> None:
        super().__init__(
            f"{model} of {package} cannot be used: {reason}",
            next_step="Repair or uninstall that package; `bundler models` shows what can be built.",
        )


class CheckpointError(BundlerError):
    """Weights that cannot be read, or that do not fit the model."""

    exit_code = 6


class CalibrationError(BundlerError):
    """Calibration data that cannot be used."""

    exit_code = 7


class DataError(BundlerError):
    """Labelled images that cannot be used to measure accuracy or to train."""

    exit_code = 7


class UnreadableImageError(DataError):
    """An image file that cannot be read or decoded; `reason` is the cause without the path."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"{path} cannot be read: {reason}", next_step="Remove it or replace it: every image of the data counts."
        )
        self.reason = reason


class TrainingError(BundlerError):
    """A training that cannot continue or be resumed."""

    exit_code = 14


class AccuracyError(BundlerError):
    """An INT8 mode whose accuracy drop is larger than `--max-drop`."""

    exit_code = 13


class VerificationFailedError(BundlerError):
    """At least one mode failed verification on at least one CPU."""

    exit_code = 8


class EngineError(BundlerError):
    """The container engine refused a request, or failed during it."""

    exit_code = 9


class EngineUnavailableError(EngineError):
    """No container engine answers."""


class ContainerTimeoutError(EngineError):
    """A container that was killed after its time limit."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the container was killed after its time limit of {seconds:g} s",
            next_step="If this machine is slow, raise `timeout_seconds` in the target profile; otherwise run `bundler doctor`.",
        )


class EmulatorError(EngineError):
    """An emulator that is too old, computes wrong results, or emulates another CPU than requested."""


class ImageError(EngineError):
    """A device image that cannot be assembled or loaded."""


class OtherFilesExecutedError(EngineError):
    """The device program executed other files than those of the bundle."""


class ExportError(BundlerError):
    """An exported ONNX graph that failed validation."""

    exit_code = 10


class BundleDamagedError(BundlerError):
    """A bundle whose files are not those that were verified, or that is not valid."""

    exit_code = 11


class BundleNotFoundError(BundlerError):
    exit_code = 11


class UntrustedBundleError(BundlerError):
    """A bundle whose documents request something that only the user can permit."""

    exit_code = 11


class OutputError(BundlerError):
    """A file or directory that cannot be written."""

    exit_code = 12


class OutOfSpaceError(OutputError):
    """A full disk; `path` is a file or folder on it."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(
            f"the disk is full at {path}; an earlier bundle is unchanged",
            next_step="Free some space (`docker system prune`), or use another disk: --output DIR, XDG_CACHE_HOME=DIR for the "
            "cache, TMPDIR=DIR for temporary files. Then run the same command again.",
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `Did you mean …?` with up to three of the known names, or an empty string if none is similar.

    Case and separators are ignored: `ResNet-50` matches `resnet50`.
    """
    squeezed = {_squeeze(candidate): candidate for candidate in known}
    matches = difflib.get_close_matches(_squeeze(name), squeezed, n=3, cutoff=0.55)
    if not matches:
        return ""
    return f"Did you mean {' or '.join(squeezed[match] for match in matches)}?"


def _squeeze(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
