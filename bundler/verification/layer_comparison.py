"""Layer-wise comparison of torch's INT8 with ONNX Runtime on this host and on another architecture, tensor by tensor."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundler import console
from bundler.device.numerics import top1_agreement
from bundler.device.tracing import OUTPUTS
from bundler.engines.container import RunResult
from bundler.engines.emulation import Launch
from bundler.errors import BundleDamagedError, EmulatorError
from bundler.graphs.instrumentation import GraphTensor, instrument_file
from bundler.manifest import ComparedTensor, ExecutionPair, LayerComparisonRecord, StepDifferences
from bundler.models.specs import Mode
from bundler.packaging.arrays import read_arrays
from bundler.packaging.staging import model_path
from bundler.targets import OptimizationLevel
from bundler.verification.evidence import Executor

__all__ = ["Place", "Trace", "compare_layers", "save_torch_trace"]

Trace = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an instrumented graph is executed."""

    name: str
    executor: Executor
    launch: Launch


def save_torch_trace(bundle: Path, mode: str, trace: Trace) -> None:
    """Write torch's integers into the bundle, for this comparison and for `bundler verify --explain`."""
    path = _torch_path(bundle, mode)
    path.parent.mkdir(exist_ok=True)
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **trace)
    path.write_bytes(content.getvalue())


def _torch_path(bundle: Path, mode: str) -> Path:
    return bundle / "ledger" / f"{mode}.npz"


def compare_layers(
    bundle: Path, mode: Mode, *, level: OptimizationLevel, samples: int, places: Sequence[Place], workspace: Path
) -> LayerComparisonRecord:
    """Execute the instrumented graph of a mode in each place, and compare every pair of executions, torch's included.

    Args:
        bundle: folder with the graph, the golden inputs and torch's integers (`save_torch_trace`).
        mode: an INT8 mode.
        level: graph optimization level.
        samples: number of golden inputs of which the network's outputs are compared.
        places: where the graph is executed.
        workspace: folder for the instrumented graph.

    Raises:
        BundleDamagedError: the bundle does not hold torch's integers.
        EmulatorError: the instrumented graph does not run in one of the places.
        EngineError: the engine failed.
    """
    instrumented = workspace / f"{mode}-instrumented.onnx"
    tensors = instrument_file(bundle / model_path(mode), instrumented)
    console.step(f"Comparing {len(tensors)} tensors of {mode} with torch's: {', '.join(place.name for place in places)}")
    traces = {"torch": _torch_trace(bundle, mode)}
    for place in places:
        result = place.executor.trace(place.launch, instrumented, bundle / "golden" / "inputs.npy", [level, str(samples)])
        traces[place.name] = _read(result, place.name)
    pairs = tuple(itertools.combinations(traces, 2))
    rows = tuple(
        ComparedTensor(layer=tensor.layer, apart=tuple(_apart(traces[a], traces[b], tensor) for a, b in pairs))
        for tensor in tensors
    )
    return LayerComparisonRecord(
        executions=tuple(traces),
        pairs=tuple(_pair(traces, names, [row.apart[index] for row in rows], tensors) for index, names in enumerate(pairs)),
        tensors=rows,
    )


def _torch_trace(bundle: Path, mode: str) -> Trace:
    path = _torch_path(bundle, mode)
    try:
        return read_arrays(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BundleDamagedError(
            f"{path} cannot be read: {error}",
            next_step="Build the bundle again; early versions did not write this file.",
        ) from error


def _read(result: RunResult, name: str) -> Trace:
    if result.exit_code != 0:
        words = (result.death or result.stderr.strip() or "no message").splitlines()[-1]
        raise EmulatorError(
            f"the instrumented graph of the layer comparison does not run on {name}: {words} (exit code {result.exit_code})",
            next_step="`bundler doctor` shows what works here; the bundle's recorded evidence is unaffected.",
        )
    return read_arrays(base64.b64decode(result.stdout))


def _apart(first: Trace, second: Trace, tensor: GraphTensor) -> StepDifferences | None:
    if tensor.name not in first or tensor.name not in second:
        return None
    steps = np.abs(first[tensor.name].astype(np.int16) - second[tensor.name].astype(np.int16))
    return StepDifferences(equal=int((steps == 0).sum()), one=int((steps == 1).sum()), more=int((steps > 1).sum()))


def _pair(
    traces: Mapping[str, Trace],
    names: tuple[str, str],
    apart: Sequence[StepDifferences | None],
    tensors: Sequence[GraphTensor],
) -> ExecutionPair:
    first, second = (traces[name][OUTPUTS] for name in names)
    count = min(len(first), len(second))
    parted = (tensor.layer for tensor, item in zip(tensors, apart, strict=True) if item and item.one + item.more)
    return ExecutionPair(
        first=names[0],
        second=names[1],
        parted=next(parted, None),
        top1_agreement=top1_agreement(first[:count], second[:count]) if first.ndim == 2 else None,
    )
