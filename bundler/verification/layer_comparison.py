"""The ledger: torch's INT8 beside ONNX Runtime on this machine and on another architecture, tensor by tensor (issue 4)."""

from __future__ import annotations

import base64
import io
import itertools
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundler import console
from bundler.engines.container import RunResult
from bundler.engines.container_engine import Engine
from bundler.engines.emulation import Launch
from bundler.errors import BundleDamagedError, EmulatorError, EngineUnavailableError
from bundler.graphs.comparison import top1_agreement
from bundler.graphs.instrumentation import GraphTensor, instrument_file
from bundler.images.device_image import DeviceImage
from bundler.manifest import LedgerPair, LedgerRecord, LedgerTensor, StepsApart
from bundler.packaging.arrays import read_arrays
from bundler.packaging.staging import model_path
from bundler.targets import TargetProfile
from bundler.verification.evidence import Executor
from bundler.verification.executors import ContainerExecutor, HostExecutor

__all__ = ["OUTPUTS", "VALUES", "Place", "Trace", "host_place", "image_place", "make_ledger", "save_torch_trace"]

OUTPUTS = "outputs"  # among the tensors, the network's own outputs
VALUES = 16_384  # of a tensor that are kept, as in templates/trace.py

Trace = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an instrumented graph is run."""

    name: str
    executor: Executor
    launch: Launch


def save_torch_trace(bundle: Path, mode: str, trace: Trace) -> None:
    """Write it into the bundle, where `bundler verify --explain` finds it."""
    path = _torch_path(bundle, mode)
    path.parent.mkdir(exist_ok=True)
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **trace)
    path.write_bytes(content.getvalue())


def _torch_path(bundle: Path, mode: str) -> Path:
    return bundle / "ledger" / f"{mode}.npz"


def host_place(bundle: Path, target: TargetProfile) -> Place:
    """Return this machine, with the Python that runs this program."""
    executor = HostExecutor(bundle=bundle, target=target)
    return Place(name=f"ONNX Runtime, {platform.machine()}", executor=executor, launch=Launch(runner="native"))


def image_place(target: TargetProfile, image: DeviceImage | None, engine: Engine | EngineUnavailableError) -> Place | None:
    """Return the device image on the first CPU of its target; None where there is no engine, or this machine is like it."""
    if image is None or not isinstance(engine, Engine) or target.architecture.machine == platform.machine():
        return None
    executor = ContainerExecutor(engine=engine, image=image, target=target)
    cpu = target.verification.cpus[0]
    launch = executor.launch(cpu)
    if not isinstance(launch, Launch):
        console.warn(f"the ledger goes without {cpu.name}: {launch.reason}")
        return None
    return Place(name=f"ONNX Runtime, {target.architecture.machine} ({cpu.name})", executor=executor, launch=launch)


def make_ledger(bundle: Path, mode: str, *, level: str, samples: int, places: Sequence[Place], workspace: Path) -> LedgerRecord:
    """Run the instrumented graph of a mode in each place and compare all of them with torch and with each other.

    Raises:
        BundleDamagedError: the bundle does not hold torch's integers.
        EmulatorError: the instrumented graph does not run in one of the places.
        EngineError: the engine failed half-way.
    """
    instrumented = workspace / f"{mode}-instrumented.onnx"
    tensors = instrument_file(bundle / model_path(mode), instrumented)  # type: ignore[arg-type]
    console.step(f"Comparing the {len(tensors)} tensors of {mode} with torch's: {', '.join(place.name for place in places)}")
    traces = {"torch": _torch_trace(bundle, mode)}
    for place in places:
        result = place.executor.trace(place.launch, instrumented, bundle / "golden" / "inputs.npy", [level, str(samples)])
        traces[place.name] = _read(result, place.name)
    pairs = tuple(itertools.combinations(traces, 2))
    rows = tuple(
        LedgerTensor(layer=tensor.layer, apart=tuple(_apart(traces[a], traces[b], tensor) for a, b in pairs))
        for tensor in tensors
    )
    return LedgerRecord(
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
            f"{path} cannot be read: {error}", next_step="Build the bundle again: bundles of earlier versions have no ledger."
        ) from error


def _read(result: RunResult, name: str) -> Trace:
    if result.exit_code != 0:
        words = (result.death or result.stderr.strip() or "no message").splitlines()[-1]
        raise EmulatorError(
            f"the instrumented graph does not run on {name}: {words} (exit code {result.exit_code})",
            next_step="`bundler doctor` shows what works here; the evidence of the bundle is not concerned.",
        )
    return read_arrays(base64.b64decode(result.stdout))


def _apart(first: Trace, second: Trace, tensor: GraphTensor) -> StepsApart | None:
    if tensor.name not in first or tensor.name not in second:
        return None
    steps = np.abs(first[tensor.name].astype(np.int16) - second[tensor.name].astype(np.int16))
    return StepsApart(equal=int((steps == 0).sum()), one=int((steps == 1).sum()), more=int((steps > 1).sum()))


def _pair(
    traces: Mapping[str, Trace],
    names: tuple[str, str],
    apart: Sequence[StepsApart | None],
    tensors: Sequence[GraphTensor],
) -> LedgerPair:
    first, second = (traces[name][OUTPUTS] for name in names)
    count = min(len(first), len(second))
    parted = (tensor.layer for tensor, item in zip(tensors, apart, strict=True) if item and item.one + item.more)
    return LedgerPair(
        first=names[0],
        second=names[1],
        parted=next(parted, None),
        top1_agreement=top1_agreement(first[:count], second[:count]) if first.ndim == 2 else None,
    )
