"""Recovery: where INT8 loses more accuracy than is allowed, what the profile names is tried, cheapest first (issue 4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bundler import console
from bundler.data.calibration_images import Dataset
from bundler.evaluation.accuracy import AccuracyTest
from bundler.graphs.comparison import sqnr_db
from bundler.graphs.exported_graph import ExportedGraph
from bundler.manifest import AccuracyRecord, BoxesRecord, RecoveryRecord
from bundler.pipeline.inputs import Material, more_pictures
from bundler.pipeline.network import Network
from bundler.pipeline.quantizing import QuantizedModel, calibrated
from bundler.plan import BuildJob
from bundler.quantization import FloatBlock, find_float_blocks, quantized_engine, with_float_blocks

__all__ = ["Attempt", "recover"]

SENSITIVITY_PICTURES = 16  # on which each block's share of the noise is measured
MOST_FLOAT = 0.5  # of the layers; with more, it would be INT8 by name only

Export = Callable[[QuantizedModel], ExportedGraph]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """An INT8 network, the pictures that calibrated it, its graph, how accurate that is, and the steps that led to it.

    `accuracy` is None where no pictures were given to measure it on.
    """

    model: QuantizedModel
    calibration: Dataset
    graph: ExportedGraph
    accuracy: AccuracyRecord | BoxesRecord | None
    steps: tuple[RecoveryRecord, ...] = ()

    @property
    def lost_points(self) -> float:
        """Percentage points of accuracy against FP32."""
        assert self.accuracy is not None  # noqa: S101  it was measured
        assert self.accuracy.lost_points is not None  # noqa: S101  it is not FP32's own
        return self.accuracy.lost_points


def recover(
    first: Attempt,
    job: BuildJob,
    material: Material,
    network: Network,
    *,
    test: AccuracyTest,
    max_drop: float,
    export: Export,
) -> Attempt:
    """Try the profile's steps one after another until no more than `max_drop` points are lost.

    A step that wins some is kept, and the next ones stand on it. The result is the best attempt, with the record of every
    step; whether it is good enough is for the caller to say.
    """
    best = first
    for step in job.target.quantization.fallback:
        if best.lost_points <= max_drop:
            break
        console.step(f"{best.lost_points:.2f} points are lost and {max_drop:g} allowed: trying {step}")
        if step == "mixed-precision":
            best = _with_float_layers(best, network, test=test, max_drop=max_drop, export=export)
            continue
        pictures, profile = best.calibration, best.model.profile
        if step == "more-calibration-images":
            found = more_pictures(job, material)
            if found is None:
                best = _noted(best, step, "there are no more pictures")
                continue
            pictures = found
        elif step in profile.options:
            best = _noted(best, step, "it is in use already")
            continue
        else:
            profile = profile.with_option(step)
        detail = f"{len(pictures)} pictures" if step == "more-calibration-images" else ""
        model = calibrated(job, network, pictures=pictures, profile=profile)
        best = _better(best, step, detail, model, pictures, test, export)
    return best


def _better(
    best: Attempt,
    step: str,
    detail: str,
    model: QuantizedModel,
    calibration: Dataset,
    test: AccuracyTest,
    export: Export,
) -> Attempt:
    """Return the better one of two, with the step in its record; what won nothing is left out again."""
    graph = export(model)
    accuracy = test.measure(graph)
    tried = Attempt(model=model, calibration=calibration, graph=graph, accuracy=accuracy)
    won = best.lost_points - tried.lost_points
    record = RecoveryRecord(step=step, detail=detail, score=accuracy.score, won_points=won, kept=won > 0)
    console.detail(f"{step}{f' ({detail})' if detail else ''}: {won:+.2f} points, {'kept' if record.kept else 'not kept'}")
    return replace(tried if record.kept else best, steps=(*best.steps, record))


def _noted(best: Attempt, step: str, reason: str) -> Attempt:
    console.detail(f"{step}: {reason}")
    record = RecoveryRecord(step=step, detail=reason, score=None, won_points=None, kept=False)
    return replace(best, steps=(*best.steps, record))


def _with_float_layers(best: Attempt, network: Network, *, test: AccuracyTest, max_drop: float, export: Export) -> Attempt:
    """Leave 1, 2, 4, 8 … of the blocks that make the most noise in float, until the loss is small enough or half of it is."""
    whole = best.model
    float_model = network.with_weights(whole.weights)
    pictures = torch.from_numpy(best.calibration.pictures[:SENSITIVITY_PICTURES])
    with quantized_engine(whole.profile.engine):
        order = _by_noise(whole, float_model, pictures)
    within = [sum(block.layers for block in order[:count]) <= MOST_FLOAT * whole.layers for count in range(1, len(order) + 1)]
    for count in _doubled(sum(within)):
        if best.lost_points <= max_drop:
            break
        chosen = order[:count]
        with quantized_engine(whole.profile.engine):
            mixed = with_float_blocks(whole.converted, float_model, chosen)
        model = replace(whole, converted=mixed, float_layers=sum(block.layers for block in chosen))
        names = ", ".join(block.name for block in chosen)
        best = _better(best, "mixed-precision", names, model, best.calibration, test, export)
    return best


def _by_noise(model: QuantizedModel, float_model: Any, pictures: Tensor) -> Sequence[FloatBlock]:
    """Return the blocks that could stay in float, the one that wins most for each of its layers first."""
    blocks = find_float_blocks(model.converted, pictures[:1])
    with torch.inference_mode():
        reference = float_model(pictures).numpy()
        noise = _noise(reference, model.converted(pictures).numpy())
        won: dict[FloatBlock, float] = {}
        with console.progress("measuring which layers hurt", len(blocks)) as advance:
            for block in blocks:
                mixed = with_float_blocks(model.converted, float_model, [block])
                won[block] = (noise - _noise(reference, mixed(pictures).numpy())) / block.layers
                advance(1)
    return sorted(won, key=won.__getitem__, reverse=True)


def _noise(reference: Any, outputs: Any) -> float:
    """Return the noise as a share of the signal."""
    return math.pow(10, -sqnr_db(reference, outputs) / 10)


def _doubled(most: int) -> Iterator[int]:
    count = 1
    while count < most:
        yield count
        count *= 2
    if most:
        yield most
