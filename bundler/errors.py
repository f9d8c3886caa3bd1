"""Every failure a user can meet: one class each, with its exit code and what to do next."""

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
    """A failure with a cause and a next step; `exit_code` is part of the command line's contract."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, next_step: str) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step


class ImpossibleRequestError(BundlerError):
    """A number on the command line that no network can take."""

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
    """A target's TOML file that cannot be read or does not validate."""

    exit_code = 4

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is not a target profile: {reason}", next_step="Compare it with targets/x86-fbgemm.toml.")


class ModeUnavailableError(BundlerError):
    """A mode that this model does not have, or not yet."""

    exit_code = 5

    def __init__(self, model: str, mode: str, reason: str, available: Iterable[str]) -> None:
        modes = ", ".join(available) or "none yet"
        super().__init__(f"{model} has no mode {mode}: {reason}", next_step=f"Modes of {model}: {modes}.")


class BrokenModelError(BundlerError):
    """A model that another package offers, and that cannot be used."""

    exit_code = 4

    def __init__(self, model: str, package: str, reason: str) -> None:
        super().__init__(
            f"{model} of {package} cannot be used: {reason}",
            next_step="Repair or uninstall that package; `bundler models` shows what can be built.",
        )


class CheckpointError(BundlerError):
    """Weights that cannot be read, or that belong to another network."""

    exit_code = 6


class CalibrationError(BundlerError):
    """A calibration folder without one usable picture."""

    exit_code = 7


class DataError(BundlerError):
    """Labelled pictures that accuracy cannot be measured with."""

    exit_code = 7


class UnreadableImageError(DataError):
    """An image file that cannot be read or decoded; `reason` says why, in a few words."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"{path} cannot be read: {reason}", next_step="Remove it or replace it: every image of the data counts."
        )
        self.reason = reason


class TrainingError(BundlerError):
    """A training that cannot go on, or be resumed."""

    exit_code = 14


class AccuracyError(BundlerError):
    """An INT8 mode that loses more accuracy than `--max-drop` allows."""

    exit_code = 13


class VerificationFailedError(BundlerError):
    """At least one mode gave wrong results on at least one CPU."""

    exit_code = 8


class EngineError(BundlerError):
    """The container engine refused, or died half-way."""

    exit_code = 9


class EngineUnavailableError(EngineError):
    """No container engine answers."""


class ContainerTimeoutError(EngineError):
    """A container that ran into its time limit and was killed."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the container was killed after its time limit of {seconds:g} s",
            next_step="Raise `timeout_seconds` in the target's profile if this machine is slow, or see `bundler doctor`.",
        )


class EmulatorError(EngineError):
    """An emulator that is too old, computes wrongly, or ignores the CPU it was asked to be."""


class ImageError(EngineError):
    """An image that could not be put together: base image, wheels, or loading."""


class OtherFilesExecutedError(EngineError):
    """The device program executed other files than those it was to verify."""


class ExportError(BundlerError):
    """A graph that does not hold what the export promises."""

    exit_code = 10


class BundleDamagedError(BundlerError):
    """A bundle whose files are not the ones that were proved."""

    exit_code = 11


class BundleNotFoundError(BundlerError):
    exit_code = 11


class UntrustedBundleError(BundlerError):
    """A bundle that asks for something that only the user may ask for."""

    exit_code = 11


class OutputError(BundlerError):
    """A place that cannot be written to."""

    exit_code = 12


class OutOfSpaceError(OutputError):
    """A full disk; `path` is a file or folder on it."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(
            f"the disk is full at {path}; nothing of an earlier bundle was changed",
            next_step="Free some space (`docker system prune`), or use another disk: --output DIR, XDG_CACHE_HOME=DIR for the "
            "cache, TMPDIR=DIR for temporary files. Then run the same command again.",
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `Did you mean …?` with up to three names, or an empty string.

    Names are compared without case and separators first: `ResNet-50` is `resnet50`.
    """
    squeezed = {_squeeze(candidate): candidate for candidate in known}
    matches = difflib.get_close_matches(_squeeze(name), squeezed, n=3, cutoff=0.55)
    if not matches:
        return ""
    return f"Did you mean {' or '.join(squeezed[match] for match in matches)}?"


def _squeeze(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
