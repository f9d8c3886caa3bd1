"""RunnerDocument: `runner.json`, which the build host writes and the device program reads, with its schema version."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final, Literal, get_args

__all__ = [
    "PROGRAM",
    "RUNNER_JSON",
    "RUNNER_SCHEMA",
    "BundleMode",
    "DocumentError",
    "GoldenFiles",
    "KnownAnswerFiles",
    "ModeName",
    "OptimizationLevel",
    "RunnerDocument",
    "Task",
    "Tolerances",
    "parse_runner_document",
]

RUNNER_SCHEMA: Final = "edge-bundler/runner/2"
RUNNER_JSON: Final = "runner.json"
PROGRAM: Final = "device.pyz"  # this program in a bundle

Task = Literal["classification", "detection"]
ModeName = Literal["fp32", "int8-ptq", "int8-qat"]
OptimizationLevel = Literal["disabled", "basic", "extended", "all"]


class DocumentError(ValueError):
    """A document that does not follow its schema."""


@dataclass(frozen=True, kw_only=True)
class GoldenFiles:
    """Golden inputs float32 [N, 3, H, W], and the FP32 outputs on them on the build host; paths in the bundle."""

    inputs: str
    reference: str


@dataclass(frozen=True, kw_only=True)
class KnownAnswerFiles:
    """A model in integers and its only correct answer; paths in the bundle."""

    model: str
    inputs: str
    expected: str


@dataclass(frozen=True, kw_only=True)
class BundleMode:
    """A mode: its model, its outputs on the build host, and on how many golden inputs the selftest runs it.

    `step` is the quantization step of INT8 outputs, None for others. `expected_sqnr_db` is the SQNR of the outputs on the build
    host against FP32, None for FP32 itself.
    """

    name: ModeName
    model: str
    expected: str
    samples: int
    step: float | None
    expected_sqnr_db: float | None


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """By how much outputs may differ: quantization steps, loss of SQNR in dB, and the least SQNR of float outputs in dB."""

    max_steps: int
    sqnr_loss_db: float
    fp32_min_sqnr_db: float


@dataclass(frozen=True, kw_only=True)
class RunnerDocument:
    """`runner.json`; `files` has the SHA-256 of every file in the device image but this one, by its path in the bundle."""

    schema: Literal["edge-bundler/runner/2"]
    bundle: str
    input: str
    output: str
    task: Task
    graph_optimization_level: OptimizationLevel
    onnxruntime_minimum: str
    python_minimum: str
    golden: GoldenFiles
    known_answer: KnownAnswerFiles
    modes: tuple[BundleMode, ...]
    tolerances: Tolerances
    files: Mapping[str, str]

    @property
    def opened(self) -> frozenset[str]:
        """The files that the device program opens: itself, models and arrays."""
        of_modes = (path for mode in self.modes for path in (mode.model, mode.expected))
        known = self.known_answer
        golden = self.golden
        return frozenset({PROGRAM, golden.inputs, golden.reference, known.model, known.inputs, known.expected, *of_modes})

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"


def parse_runner_document(value: object) -> RunnerDocument:
    """Return the document that was read from JSON; keys that this version does not know are ignored.

    Raises:
        DocumentError: it has another schema version, lacks a key, or a value has another type than its schema gives.
    """
    root = _Object(value)
    schema = root.member("schema")
    if schema != RUNNER_SCHEMA:
        raise DocumentError(f"its schema is {_quoted(schema)}, not {RUNNER_SCHEMA!r}")
    golden, known, tolerances = (root.child(name) for name in ("golden", "known_answer", "tolerances"))
    level, task = root.member("graph_optimization_level"), root.member("task")
    return RunnerDocument(
        schema=RUNNER_SCHEMA,
        bundle=root.text("bundle"),
        input=root.text("input"),
        output=root.text("output"),
        task=_task(task),
        graph_optimization_level=_level(level),
        onnxruntime_minimum=root.text("onnxruntime_minimum"),
        python_minimum=root.text("python_minimum"),
        golden=GoldenFiles(inputs=golden.text("inputs"), reference=golden.text("reference")),
        known_answer=KnownAnswerFiles(model=known.text("model"), inputs=known.text("inputs"), expected=known.text("expected")),
        modes=tuple(map(_mode, root.children("modes"))),
        tolerances=Tolerances(
            max_steps=tolerances.integer("max_steps"),
            sqnr_loss_db=tolerances.number("sqnr_loss_db"),
            fp32_min_sqnr_db=tolerances.number("fp32_min_sqnr_db"),
        ),
        files=root.child("files").texts(),
    )


def _task(value: object) -> Task:
    for task in get_args(Task):
        if value == task:
            return task  # type: ignore[no-any-return]  # get_args has no types
    raise DocumentError(f"its task is {_quoted(value)}, not {' or '.join(get_args(Task))}")


def _level(value: object) -> OptimizationLevel:
    for level in get_args(OptimizationLevel):
        if value == level:
            return level  # type: ignore[no-any-return]  # as above
    raise DocumentError(f"graph_optimization_level is {_quoted(value)}, not {' or '.join(get_args(OptimizationLevel))}")


def _mode_name(value: str) -> ModeName:
    for name in get_args(ModeName):
        if value == name:
            return name  # type: ignore[no-any-return]  # as above
    raise DocumentError(f"the name of a mode is {_quoted(value)}, not {' or '.join(get_args(ModeName))}")


def _mode(mode: _Object) -> BundleMode:
    samples = mode.integer("samples")
    if samples < 1:
        raise DocumentError(f"{mode.path('samples')} is {samples}, not 1 or more")
    return BundleMode(
        name=_mode_name(mode.text("name")),
        model=mode.text("model"),
        expected=mode.text("expected"),
        samples=samples,
        step=mode.optional_number("step"),
        expected_sqnr_db=mode.optional_number("expected_sqnr_db"),
    )


def _quoted(value: object) -> str:
    """Return a value as a message has it: without control characters, and not longer than a line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


class _Object:
    """A JSON object, whose members are read with their types; `where` is its path in the document."""

    def __init__(self, value: object, where: str = "") -> None:
        if not isinstance(value, dict):
            raise DocumentError(f"{where or 'it'} is not a JSON object")
        self._members: dict[str, object] = value
        self._where = where

    def path(self, name: str) -> str:
        return f"{self._where}.{name}" if self._where else name

    def member(self, name: str) -> object:
        if name not in self._members:
            raise DocumentError(f"it lacks {self.path(name)}")
        return self._members[name]

    def text(self, name: str) -> str:
        value = self.member(name)
        if not isinstance(value, str):
            raise DocumentError(f"{self.path(name)} is {_quoted(value)}, not a text")
        return value

    def integer(self, name: str) -> int:
        value = self.member(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise DocumentError(f"{self.path(name)} is {_quoted(value)}, not an integer")
        return value

    def number(self, name: str) -> float:
        value = self.member(name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise DocumentError(f"{self.path(name)} is {_quoted(value)}, not a finite number")
        return value

    def optional_number(self, name: str) -> float | None:
        return None if self.member(name) is None else self.number(name)

    def child(self, name: str) -> _Object:
        return _Object(self.member(name), self.path(name))

    def children(self, name: str) -> tuple[_Object, ...]:
        value = self.member(name)
        if not isinstance(value, list):
            raise DocumentError(f"{self.path(name)} is not a list")
        return tuple(_Object(item, f"{self.path(name)}[{index}]") for index, item in enumerate(value))

    def texts(self) -> dict[str, str]:
        return {name: self.text(name) for name in self._members}
