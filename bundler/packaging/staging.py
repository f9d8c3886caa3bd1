"""StagedBundle: everything the device executes, laid out in a folder; the rest of the package is written around it."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundler.files.sha256 import sha256_of
from bundler.graphs.comparison import sqnr_db
from bundler.graphs.exported_graph import INPUT, OUTPUTS, ExportedGraph
from bundler.graphs.known_answer import write_known_answer
from bundler.models.specs import Mode, Task
from bundler.resources import resource
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
    """A folder with what the runner reads.

    `files` are the names that go into the image, sorted; `samples` is how many golden pictures the selftest runs of each mode.
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
    """Write runner, runner.json and golden files beside the models, which the export has put into `directory/models` already.

    Args:
        directory: of the bundle in the making.
        identifier: of the bundle.
        target: its profile gives tolerances, optimization level, and how many golden pictures float is run on.
        task: tells the runner what the outputs say.
        inputs: golden pictures, float32 [N, 3, H, W].
        reference: FP32 outputs on them, float32 [N, classes] or [N, boxes, 5 + classes].
        modes: in the order in which the runner executes them.
    """
    golden = directory / "golden"
    golden.mkdir()
    _save(golden / "inputs.npy", inputs)
    _save(golden / "reference.npy", reference)
    question, answer = write_known_answer(golden / "known-answer.onnx", opset=target.export.opset)
    _save(golden / "known-answer-inputs.npy", question)
    _save(golden / "known-answer-expected.npy", answer)
    shutil.copyfile(resource("templates", "runner.py"), directory / "runner.py")
    (directory / "runner.py").chmod(0o755)
    for mode, expected in modes.items():
        _save(golden / f"{mode}.npy", expected.outputs[: _samples(expected, target)])
    files = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    runtime = max(expected.graph.runtime for expected in modes.values())
    document = {
        "schema": "edge-bundler/runner/1",
        "bundle": identifier,
        "input": INPUT,
        "output": OUTPUTS[task],
        "task": task,
        "graph_optimization_level": target.runtime.graph_optimization_level,
        "onnxruntime_minimum": runtime.onnxruntime,
        "python_minimum": runtime.python,
        "golden": {"inputs": "golden/inputs.npy", "reference": "golden/reference.npy"},
        "known_answer": {
            "model": "golden/known-answer.onnx",
            "inputs": "golden/known-answer-inputs.npy",
            "expected": "golden/known-answer-expected.npy",
        },
        "modes": [_mode(mode, expected, reference, target) for mode, expected in modes.items()],
        "tolerances": target.verification.tolerances.model_dump(),
        "files": {name: sha256_of(directory / name) for name in files},
    }
    (directory / "runner.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return StagedBundle(
        directory=directory,
        files=tuple(sorted([*files, "runner.json"])),
        samples={mode: _samples(expected, target) for mode, expected in modes.items()},
    )


def _save(path: Path, array: NDArray[Any]) -> None:
    """Write an array; numpy itself, on a full disk, raises an OSError that does not say so."""
    content = io.BytesIO()
    np.save(content, array)
    path.write_bytes(content.getvalue())


def _mode(mode: Mode, expected: GoldenMode, reference: Outputs, target: TargetProfile) -> dict[str, Any]:
    samples = _samples(expected, target)
    ratio = sqnr_db(reference[:samples], expected.outputs[:samples])
    return {
        "name": mode,
        "model": model_path(mode),
        "expected": f"golden/{mode}.npy",
        "samples": samples,
        "step": expected.graph.output_step,
        "expected_sqnr_db": ratio if expected.graph.quantized and math.isfinite(ratio) else None,
    }


def samples_of(graph: ExportedGraph, target: TargetProfile) -> int:
    """Return how many golden pictures a selftest runs; float takes so much longer under emulation that it runs fewer."""
    in_float = not graph.quantized or graph.float_layers > 0
    return target.verification.golden_inputs_fp32 if in_float else target.verification.golden_inputs


def _samples(expected: GoldenMode, target: TargetProfile) -> int:
    return min(len(expected.outputs), samples_of(expected.graph, target))
