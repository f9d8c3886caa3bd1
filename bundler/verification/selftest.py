"""What the device runner answers: its probe and selftest documents, validated."""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bundler.errors import EmulatorError

__all__ = ["Emulator", "Machine", "ModeResult", "Probe", "Selftest", "read_probe", "read_selftest"]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Cpu(_Answer):
    model: str
    features: tuple[str, ...]


class Emulator(_Answer):
    name: str
    version: str
    sha256: str | None


class KnownAnswers(_Answer):
    passed: bool
    checks: dict[str, bool]


class Machine(_Answer):
    """A machine as it looks from inside."""

    machine: str
    cpu: Cpu
    emulation: Literal["none", "emulated", "unknown"] | None = None  # older runners have `emulator` alone
    emulation_reason: str = ""
    emulator: Emulator | None
    python: str
    numpy: str
    onnxruntime: str | None
    known_answers: KnownAnswers


Answer = TypeVar("Answer", bound=Machine)


class Probe(Machine):
    schema_: Literal["edge-bundler/probe/1"] = Field(alias="schema")


class ModeResult(_Answer):
    name: str
    samples: int
    model_sha256: str | None
    outputs_sha256: str | None
    sqnr_db: float | None
    top1_agreement: float | None
    boxes_agreement: float | None = None
    max_steps: int | None
    verdict: Literal["passed", "failed"]
    reason: str


class Selftest(Machine):
    schema_: Literal["edge-bundler/selftest/2"] = Field(alias="schema")
    bundle: str
    bundle_sha256: str
    graph_optimization_level: str
    modes: tuple[ModeResult, ...]
    verdict: Literal["passed", "failed"]


def read_probe(text: str) -> Probe:
    """Read what `runner.py probe --json` printed.

    Raises:
        EmulatorError: it is not that document.
    """
    return _read(Probe, text)


def read_selftest(text: str) -> Selftest:
    """Read what `runner.py selftest --json` printed.

    Raises:
        EmulatorError: it is not that document.
    """
    return _read(Selftest, text)


def _read(kind: type[Answer], text: str) -> Answer:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        raise EmulatorError(
            f"the device program's answer cannot be read: {'.'.join(map(str, problem['loc']))}: {problem['msg']}",
            next_step="The bundle may be of another version: build it again with this one.",
        ) from error
