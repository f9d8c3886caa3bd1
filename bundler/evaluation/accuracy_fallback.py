"""Accuracy fallback: if INT8 loses more accuracy than allowed, the profile's steps are tried one after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from bundler import console
from bundler.data.calibration_images import CalibrationImages
from bundler.device.numerics import sqnr_db
from bundler.evaluation.accuracy import AccuracyTest
from bundler.graphs.exported_graph import ExportedGraph
from bundler.manifest import AccuracyRecord, BoxesRecord, FallbackRecord
from bundler.models.network import Network
from bundler.quantization import FloatBlock, QuantizationProfile, find_float_blocks, quantized_engine, with_float_blocks
from bundler.quantization.quantized_model import QuantizedModel
from bundler.targets import FallbackStep, QuantizationOption

__all__ = ["AccuracyFallback", "Attempt"]

SENSITIVITY_IMAGES = 16  # on which each block's share of the noise is measured
MOST_FLOAT = 0.5  # of the layers: with more in float, the mode would be INT8 in name only


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """An INT8 network, the images that calibrated it, its graph and accuracy, and the fallback steps that led to it."""

    model: QuantizedModel
    calibration: CalibrationImages
    graph: ExportedGraph
    accuracy: AccuracyRecord | BoxesRecord
    steps: tuple[FallbackRecord, ...] = ()

    @property
    def lost_points(self) -> float:
        """Percentage points of accuracy lost to FP32; 0 if nothing is compared with FP32."""
        return self.accuracy.lost_points or 0.0


@dataclass(frozen=True, kw_only=True)
class AccuracyFallback:
    """The steps of a profile, the limit, and how a network is quantized, exported and measured again.

    Args:
        steps: names of the steps, in the order in which they are tried.
        max_drop: percentage points of accuracy that may be lost.
        network: that is quantized.
        test: images on which accuracy is measured.
        quantize: quantizes the network with other calibration images or another profile.
        more_images: gives more calibration images; None if there are no more.
        export: exports an INT8 network.
    """

    steps: Sequence[FallbackStep]
    max_drop: float
    network: Network
    test: AccuracyTest
    quantize: Callable[[CalibrationImages, QuantizationProfile], QuantizedModel]
    more_images: Callable[[], CalibrationImages | None]
    export: Callable[[QuantizedModel], ExportedGraph]

    def improve(self, first: Attempt) -> Attempt:
        """Try the steps until no more than `max_drop` points are lost.

        A step that gains accuracy is kept, and the next steps build on it. Returns the best attempt with the record of every
        step; it may still lose more than `max_drop`.
        """
        best = first
        for step in self.steps:
            if best.lost_points <= self.max_drop:
                break
            console.step(f"{best.lost_points:.2f} points lost, {self.max_drop:g} allowed: trying {step}")
            best = self._mixed_precision(best) if step == "mixed-precision" else self._requantized(best, step)
        return best

    def _requantized(self, best: Attempt, step: QuantizationOption | Literal["more-calibration-images"]) -> Attempt:
        images, profile, detail = best.calibration, best.model.profile, ""
        if step == "more-calibration-images":
            found = self.more_images()
            if found is None:
                return _noted(best, step, "there are no more images")
            images, detail = found, f"{len(found)} images"
        elif step in profile.options:
            return _noted(best, step, "it is already in use")
        else:
            profile = profile.with_option(step)
        return self._better(best, self.quantize(images, profile), images, step=step, detail=detail)

    def _better(
        self, best: Attempt, model: QuantizedModel, calibration: CalibrationImages, *, step: str, detail: str
    ) -> Attempt:
        """Return the better one of two attempts, with the step in its record."""
        graph = self.export(model)
        accuracy = self.test.measure(graph)
        tried = Attempt(model=model, calibration=calibration, graph=graph, accuracy=accuracy)
        won = best.lost_points - tried.lost_points
        record = FallbackRecord(step=step, detail=detail, score=accuracy.score, won_points=won, kept=won > 0)
        console.detail(f"{step}{f' ({detail})' if detail else ''}: {won:+.2f} points, {'kept' if record.kept else 'not kept'}")
        return replace(tried if record.kept else best, steps=(*best.steps, record))

    def _mixed_precision(self, best: Attempt) -> Attempt:
        """Keep the 1, 2, 4, 8 … noisiest blocks in float, until the loss is within the limit or half the layers are float."""
        whole = best.model
        float_model = self.network.with_weights(whole.weights)
        images = torch.from_numpy(best.calibration.pictures[:SENSITIVITY_IMAGES])
        with quantized_engine(whole.profile.engine):
            order = _by_noise(whole, float_model, images)
        counts = range(1, len(order) + 1)
        within = [sum(block.layers for block in order[:count]) <= MOST_FLOAT * whole.layers for count in counts]
        for count in _doubled(sum(within)):
            if best.lost_points <= self.max_drop:
                break
            chosen = order[:count]
            with quantized_engine(whole.profile.engine):
                mixed = with_float_blocks(whole.converted, float_model, chosen)
            model = replace(whole, converted=mixed, float_layers=sum(block.layers for block in chosen))
            names = ", ".join(block.name for block in chosen)
            best = self._better(best, model, best.calibration, step="mixed-precision", detail=names)
        return best


def _noted(best: Attempt, step: str, reason: str) -> Attempt:
    console.detail(f"{step}: {reason}")
    record = FallbackRecord(step=step, detail=reason, score=None, won_points=None, kept=False)
    return replace(best, steps=(*best.steps, record))


def _by_noise(model: QuantizedModel, float_model: Any, images: Tensor) -> Sequence[FloatBlock]:
    """Return the blocks that can stay in float, by the noise that each saves per layer, the largest first."""
    blocks = find_float_blocks(model.converted, images[:1])
    with torch.inference_mode():
        reference = float_model(images).numpy()
        noise = _noise(reference, model.converted(images).numpy())
        won: dict[FloatBlock, float] = {}
        with console.progress("measuring the noise of each block", len(blocks)) as advance:
            for block in blocks:
                mixed = with_float_blocks(model.converted, float_model, [block])
                won[block] = (noise - _noise(reference, mixed(images).numpy())) / block.layers
                advance(1)
    return sorted(won, key=won.__getitem__, reverse=True)


def _noise(reference: Any, outputs: Any) -> float:
    """Return the power of the noise as a share of the signal's."""
    return math.pow(10, -sqnr_db(reference, outputs) / 10)


def _doubled(most: int) -> Iterator[int]:
    count = 1
    while count < most:
        yield count
        count *= 2
    if most:
        yield most
