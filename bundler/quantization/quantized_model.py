"""QuantizedModel: a network in INT8, by post-training quantization (PTQ) or quantization-aware training (QAT)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bundler import console
from bundler.data.calibration_images import CalibrationImages
from bundler.quantization.eager import calibrate, convert
from bundler.quantization.equalization import equalize_channels
from bundler.quantization.training import ImageBatches, Objective, TrainingProgress, TrainingResult, train
from bundler.quantization.weight_rounding import count_layers, round_weights
from bundler.targets import QuantizationProfile
from bundler.training_options import TrainingOptions

__all__ = [
    "CalibrationSet",
    "CompletedTraining",
    "PreparableNetwork",
    "QuantizedModel",
    "TrainingRun",
    "quantize_aware",
    "quantize_post_training",
]


class PreparableNetwork(Protocol):
    """A network that can be prepared for quantization (bundler/models/network.py)."""

    @property
    def float_model(self) -> nn.Module: ...

    def prepared(self, weights: Mapping[str, Tensor], profile: QuantizationProfile, *, is_qat: bool = False) -> nn.Module: ...

    def float_convolutions(self, prepared: nn.Module) -> int: ...


@dataclass(frozen=True, kw_only=True)
class CalibrationSet:
    """Calibration images, the batch size, and the seed of the draws that weight rounding makes from their activations."""

    images: CalibrationImages
    batch_size: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """Images to train on, the objective and what its score measures, the options, and the file to resume from."""

    images: ImageBatches
    objective: Objective
    measure: str
    recipe: TrainingOptions
    checkpoint: Path
    seed: int


@dataclass(frozen=True, kw_only=True)
class CompletedTraining:
    """The scores of a training, its options, and the digest of the images that it trained on."""

    record: TrainingResult
    recipe: TrainingOptions
    data_sha256: str


@dataclass(frozen=True, kw_only=True)
class QuantizedModel:
    """An INT8 network of torch, which runs only with the target's quantized engine.

    `reference` is the same network prepared and not yet rounded, for the comparison of layers; `weights` are those of the float
    network that were quantized. `layers` counts convolutions and matrix products, `float_layers` those of them that are not
    INT8. `training` is None for PTQ.
    """

    converted: nn.Module
    reference: nn.Module
    weights: Mapping[str, Tensor]
    profile: QuantizationProfile
    layers: int
    float_layers: int
    training: CompletedTraining | None = None


def quantize_post_training(
    network: PreparableNetwork, calibration: CalibrationSet, profile: QuantizationProfile
) -> QuantizedModel:
    """Calibrate the ranges of activations and round the weights, with the options of the profile (PTQ)."""
    weights = _equalized(network.float_model, calibration, profile)
    prepared = network.prepared(weights, profile)
    _calibrate(prepared, calibration, profile)
    return QuantizedModel(
        converted=convert(_rounded(prepared, calibration, profile), profile),
        reference=prepared,
        weights=weights,
        profile=profile,
        layers=count_layers(prepared),
        float_layers=network.float_convolutions(prepared),
    )


def quantize_aware(
    network: PreparableNetwork, run: TrainingRun, calibration: CalibrationSet, profile: QuantizationProfile
) -> QuantizedModel:
    """Train the network with fake quantization (QAT); an interrupted training resumes from its checkpoint.

    Args:
        network: whose float weights the training starts from.
        run: images, objective and options of the training.
        calibration: images with which channels are equalized before the training, if the profile asks for that.
        profile: engine, qconfig and quantization options.

    Raises:
        TrainingError: the loss is not finite, or the checkpoint cannot be read.
    """
    weights = _equalized(network.float_model, calibration, profile)
    prepared = network.prepared(weights, profile, is_qat=True)
    reference = network.prepared(weights, profile)
    console.step(f"Training for INT8 on {len(run.images)} images, {run.recipe.epochs} epochs")
    record = _train(prepared, run)
    return QuantizedModel(
        converted=convert(prepared, profile),
        reference=reference,
        weights=weights,
        profile=profile,
        layers=count_layers(prepared),
        float_layers=network.float_convolutions(prepared),
        training=CompletedTraining(record=record, recipe=run.recipe, data_sha256=run.images.sha256),
    )


def _train(prepared: nn.Module, run: TrainingRun) -> TrainingResult:
    total = run.recipe.epochs * math.ceil(len(run.images) / run.recipe.batch_size)
    with console.progress("training", total) as advance:
        done = 0

        def report(now: TrainingProgress) -> None:
            nonlocal done
            reached = (now.epoch - 1) * now.steps + now.step
            advance(reached - done, f"epoch {now.epoch}: loss {now.loss:.3f}, {run.measure} {now.score:.1%}")
            done = reached

        return train(
            prepared,
            run.images,
            run.objective,
            run.recipe,
            checkpoint=run.checkpoint,
            seed=run.seed,
            report=report,
            on_epoch=lambda epoch, score: console.detail(f"epoch {epoch}: {run.measure} {score:.2%} on the validation images"),
        )


def _equalized(model: nn.Module, calibration: CalibrationSet, profile: QuantizationProfile) -> Mapping[str, Tensor]:
    """Return the weights to quantize: equalized across layers if the profile asks for that."""
    if "cross-layer-equalization" not in profile.options:
        return model.state_dict()
    equal = copy.deepcopy(model)
    with console.progress("measuring channels", len(calibration.images)) as advance:
        streams = equalize_channels(equal, _counted(calibration, advance))
    console.step(f"Cross-layer equalization: {streams or 'no'} groups of channels")
    return equal.state_dict()


def _calibrate(prepared: nn.Module, calibration: CalibrationSet, profile: QuantizationProfile) -> None:
    chosen = f", {profile.ranges.replace('-', ' ')}" if profile.ranges else ""
    console.step(f"Calibrating with {calibration.images} for {profile.engine}{chosen}")
    with console.progress("calibrating", len(calibration.images)) as advance:
        calibrate(prepared, _counted(calibration, advance))


def _rounded(prepared: nn.Module, calibration: CalibrationSet, profile: QuantizationProfile) -> nn.Module:
    chosen = {name: name in profile.options for name in ("gptq", "bias-correction")}
    if not any(chosen.values()):
        return prepared
    console.step(f"Rounding the weights layer by layer: {', '.join(name for name, asked in chosen.items() if asked)}")
    batches = (torch.from_numpy(batch) for batch in calibration.images.batches(calibration.batch_size))
    with console.progress("rounding", count_layers(prepared)) as advance:
        return round_weights(
            prepared,
            batches,
            gptq=chosen["gptq"],
            bias_correction=chosen["bias-correction"],
            seed=calibration.seed,
            on_layer=lambda: advance(1),
        )


def _counted(calibration: CalibrationSet, advance: Callable[[int], Any]) -> Iterator[Tensor]:
    for batch in calibration.images.batches(calibration.batch_size):
        yield torch.from_numpy(batch)
        advance(len(batch))
