"""StagedBundle: a folder with everything that the device executes; documents and checksums are added to it later."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundler.device.numerics import sqnr_db
from bundler.device.runner_json import (
    RUNNER_JSON,
    RUNNER_SCHEMA,
    BundleMode,
    GoldenFiles,
    KnownAnswerFiles,
    RunnerDocument,
    Tolerances,
)
from bundler.files.sha256 import sha256_of
from bundler.graphs.exported_graph import INPUT, OUTPUTS, ExportedGraph
from bundler.graphs.known_answer import write_known_answer
from bundler.models.specs import Mode, Task
from bundler.packaging.device_program import write_device_program
from bundler.targets import TargetProfile

__all__ = ["GoldenMode", "StagedBundle", "model_path", "samples_of", "stage"]

Outputs = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class GoldenMode:
    """A mode's graph, and its outputs on the golden inputs on the build host."""

    graph: ExportedGraph
    outputs: Outputs


@dataclass(frozen=True, kw_only=True)
class StagedBundle:
    """A folder with the device program and all that it reads.

    `files` are the names that go into the device image, sorted; `samples` is on how many golden inputs the selftest runs each
    mode.
    """

    directory: Path
    files: tuple[str, ...]
    samples: Mapping[Mode, int]


def model_path(mode: Mode) -> str:
    return f"models/{mode}.onnx"


def stage(
    directory: Path,
    *,
    identifier: str,
    target: TargetProfile,
    task: Task,
    inputs: Outputs,
    reference: Outputs,
    modes: Mapping[Mode, GoldenMode],
) -> StagedBundle:
    """Write the device program, runner.json and golden files beside the models, which the export has written already.

    Args:
        directory: staging folder of the bundle.
        identifier: name of the bundle, MODEL-TARGET.
        target: its profile gives tolerances, optimization level, and on how many golden inputs a mode is run.
        task: what the outputs are: one score per class, or detections.
        inputs: golden inputs, float32 [N, 3, H, W].
        reference: FP32 outputs on them, float32 [N, classes] or [N, boxes, 5 + classes].
        modes: in the order in which the selftest runs them.
    """
    golden = directory / "golden"
    golden.mkdir()
    _save(golden / "inputs.npy", inputs)
    _save(golden / "reference.npy", reference)
    question, answer = write_known_answer(golden / "known-answer.onnx", opset=target.export.opset)
    _save(golden / "known-answer-inputs.npy", question)
    _save(golden / "known-answer-expected.npy", answer)
    write_device_program(directory)
    for mode, expected in modes.items():
        _save(golden / f"{mode}.npy", expected.outputs[: _samples(expected, target)])
    files = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    runtime = max(expected.graph.runtime for expected in modes.values())
    document = RunnerDocument(
        schema=RUNNER_SCHEMA,
        bundle=identifier,
        input=INPUT,
        output=OUTPUTS[task],
        task=task,
        graph_optimization_level=target.runtime.graph_optimization_level,
        onnxruntime_minimum=runtime.onnxruntime,
        python_minimum=runtime.python,
        golden=GoldenFiles(inputs="golden/inputs.npy", reference="golden/reference.npy"),
        known_answer=KnownAnswerFiles(
            model="golden/known-answer.onnx",
            inputs="golden/known-answer-inputs.npy",
            expected="golden/known-answer-expected.npy",
        ),
        modes=tuple(_mode(mode, expected, reference, target) for mode, expected in modes.items()),
        tolerances=Tolerances(**target.verification.tolerances.model_dump()),
        files={name: sha256_of(directory / name) for name in files},
    )
    (directory / RUNNER_JSON).write_text(document.to_json(), encoding="utf-8")
    return StagedBundle(
        directory=directory,
        files=tuple(sorted([*files, RUNNER_JSON])),
        samples={mode: _samples(expected, target) for mode, expected in modes.items()},
    )


def _save(path: Path, array: NDArray[Any]) -> None:
    """Write an array, and report a full disk, which numpy's own OSError does not name."""
    content = io.BytesIO()
    np.save(content, array)
    path.write_bytes(content.getvalue())


def _mode(mode: Mode, expected: GoldenMode, reference: Outputs, target: TargetProfile) -> BundleMode:
    samples = _samples(expected, target)
    ratio = sqnr_db(reference[:samples], expected.outputs[:samples])
    return BundleMode(
        name=mode,
        model=model_path(mode),
        expected=f"golden/{mode}.npy",
        samples=samples,
        step=expected.graph.output_step,
        expected_sqnr_db=ratio if expected.graph.quantized and math.isfinite(ratio) else None,
    )


def samples_of(graph: ExportedGraph, target: TargetProfile) -> int:
    """Return on how many golden inputs a selftest runs a graph: fewer with float layers, which are slow under emulation."""
    in_float = not graph.quantized or graph.float_layers > 0
    return target.verification.golden_inputs_fp32 if in_float else target.verification.golden_inputs


def _samples(expected: GoldenMode, target: TargetProfile) -> int:
    return min(len(expected.outputs), samples_of(expected.graph, target))
