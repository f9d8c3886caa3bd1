"""Reading what the device program printed: probe and selftest documents, checked against their types and schema versions."""

from __future__ import annotations

from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from bundler.device.answers import Probe, Selftest
from bundler.errors import EmulatorError

__all__ = ["read_probe", "read_selftest"]

Answer = TypeVar("Answer", Probe, Selftest)

_PROBE, _SELFTEST = TypeAdapter(Probe), TypeAdapter(Selftest)


def read_probe(text: str) -> Probe:
    """Read what `device.pyz probe --json` printed; unknown keys are ignored.

    Raises:
        EmulatorError: it is not that document, or has another schema version.
    """
    return _read(_PROBE, text)


def read_selftest(text: str) -> Selftest:
    """Read what `device.pyz selftest --json` printed; unknown keys are ignored.

    Raises:
        EmulatorError: it is not that document, or has another schema version.
    """
    return _read(_SELFTEST, text)


def _read(adapter: TypeAdapter[Answer], text: str) -> Answer:
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        raise EmulatorError(
            f"the device program's answer cannot be read: {'.'.join(map(str, problem['loc']))}: {problem['msg']}",
            next_step="The bundle may be of another version: build it again with this one.",
        ) from error
