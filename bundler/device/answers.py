"""What the device program prints for the build host with `--json`: the probe and selftest documents, with schema versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

__all__ = [
    "PROBE_SCHEMA",
    "SELFTEST_SCHEMA",
    "Cpu",
    "Emulation",
    "Emulator",
    "KnownAnswers",
    "Machine",
    "ModeResult",
    "Probe",
    "Selftest",
    "as_json",
]

PROBE_SCHEMA: Final = "edge-bundler/probe/1"
SELFTEST_SCHEMA: Final = "edge-bundler/selftest/2"

Emulation = Literal["none", "emulated", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Cpu:
    model: str
    features: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Emulator:
    """The emulator that runs the program, and the SHA-256 of its executable."""

    name: str
    version: str
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class KnownAnswers:
    """Whether each calculation gave its only correct answer."""

    passed: bool
    checks: Mapping[str, bool]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine as seen by a program on it; `onnxruntime` is the installed version, None if there is none."""

    machine: str
    cpu: Cpu
    emulation: Emulation
    emulation_reason: str
    emulator: Emulator | None
    python: str
    numpy: str
    onnxruntime: str | None
    known_answers: KnownAnswers


@dataclass(frozen=True, kw_only=True)
class Probe(Machine):
    """The answer of `probe`."""

    schema: Literal["edge-bundler/probe/1"]


@dataclass(frozen=True, kw_only=True)
class ModeResult:
    """The result of a mode on the golden inputs; a figure that was not measured is None, and `reason` says why a mode failed.

    `sqnr_db` is None for outputs equal to the FP32 reference, too.
    """

    name: str
    samples: int
    model_sha256: str | None
    outputs_sha256: str | None
    sqnr_db: float | None
    top1_agreement: float | None
    boxes_agreement: float | None
    max_steps: int | None
    verdict: Literal["passed", "failed"]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Selftest(Machine):
    """The answer of `selftest`; `bundle_sha256` is the SHA-256 of the runner.json that it read."""

    schema: Literal["edge-bundler/selftest/2"]
    bundle: str
    bundle_sha256: str
    graph_optimization_level: str
    modes: tuple[ModeResult, ...]
    verdict: Literal["passed", "failed"]


def as_json(answer: Probe | Selftest) -> dict[str, Any]:
    """Return the document as JSON has it, the schema first."""
    return {"schema": answer.schema, **asdict(answer)}
