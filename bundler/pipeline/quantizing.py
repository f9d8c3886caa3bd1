"""QuantizedModel: a network in INT8, with ranges from calibration (PTQ) or with weights that were trained for it (QAT)."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bundler import console
from bundler.data.calibration_images import Dataset
from bundler.data.labelled_images import LabelledPictures
from bundler.evaluation.accuracy import AccuracyTest
from bundler.evaluation.detection import BoxesTest
from bundler.evaluation.training_objectives import Classification, Detection
from bundler.models.detector import QuantizableDetector
from bundler.pipeline.inputs import Material
from bundler.pipeline.network import Network
from bundler.plan import BuildJob
from bundler.quantization import (
    QuantizationProfile,
    calibrate,
    convert,
    count_layers,
    equalize_channels,
    round_weights,
)
from bundler.quantization.training import TrainingProgress, TrainingRecord, train
from bundler.resources import cache_directory

__all__ = ["QuantizedModel", "calibrated", "checkpoint_of", "trained"]


@dataclass(frozen=True, kw_only=True)
class QuantizedModel:
    """An INT8 network of torch, which runs only with the target's engine, and where it comes from.

    `reference` is the same network prepared and not yet rounded, to compare its layers with; `weights` are those of the plain
    network that were quantized. Of its `layers`, convolutions and matrix products, `float_layers` are not INT8.
    """

    converted: nn.Module
    reference: nn.Module
    weights: Mapping[str, Tensor]
    profile: QuantizationProfile
    layers: int
    float_layers: int
    training: TrainingRecord | None = None


def calibrated(job: BuildJob, network: Network, *, pictures: Dataset, profile: QuantizationProfile) -> QuantizedModel:
    """Return the network with ranges from the pictures and rounded weights, as the profile asks (PTQ)."""
    weights = _equalized(job, network.float_model, pictures, profile)
    prepared = network.prepared(weights, profile)
    _calibrate(job, prepared, pictures, profile)
    return QuantizedModel(
        converted=convert(_rounded(job, prepared, pictures, profile), profile),
        reference=prepared,
        weights=weights,
        profile=profile,
        layers=count_layers(prepared),
        float_layers=_stay_in_float(prepared),
    )


def trained(job: BuildJob, material: Material, network: Network, test: AccuracyTest) -> QuantizedModel:
    """Return the network trained for INT8 (QAT); interrupted, it goes on where it was when the same command is given again.

    The test holds what the best epoch is chosen by.

    Raises:
        TrainingError: it cannot go on.
    """
    pictures, objective = material.training, _objective(job, material, network, test)
    assert pictures is not None  # noqa: S101  the plan refuses int8-qat without data
    profile = job.target.quantization
    weights = _equalized(job, network.float_model, material.calibration, profile)
    prepared = network.prepared(weights, profile, is_qat=True)
    reference = network.prepared(weights, profile)
    checkpoint = checkpoint_of(job, material)
    console.step(f"Training for INT8 on {len(pictures)} pictures, {job.recipe.epochs} epochs")
    measure = "boxes as FP32's" if isinstance(objective, Detection) else "top-1"
    total = job.recipe.epochs * math.ceil(len(pictures) / job.recipe.batch_size)
    with console.progress("training", total) as advance:
        done = 0

        def report(now: TrainingProgress) -> None:
            nonlocal done
            reached = (now.epoch - 1) * now.steps + now.step
            advance(reached - done, f"epoch {now.epoch}: loss {now.loss:.3f}, {measure} {now.score:.1%}")
            done = reached

        record = train(
            prepared,
            pictures,
            objective,
            job.recipe,
            checkpoint=checkpoint,
            seed=job.seed,
            report=report,
            on_epoch=lambda epoch, score: console.detail(f"epoch {epoch}: {measure} {score:.2%} on the validation pictures"),
        )
    return QuantizedModel(
        converted=convert(prepared, profile),
        reference=reference,
        weights=weights,
        profile=profile,
        layers=count_layers(prepared),
        float_layers=_stay_in_float(prepared),
        training=record,
    )


def _objective(job: BuildJob, material: Material, network: Network, test: AccuracyTest) -> Classification | Detection:
    if isinstance(test, BoxesTest):
        teacher = network.float_model
        assert isinstance(teacher, QuantizableDetector)  # noqa: S101  boxes are a detector's
        return Detection(teacher=teacher, validation=test.pictures, seen=test.seen.shown)
    assert isinstance(material.labelled, LabelledPictures)  # noqa: S101  top-1 is of such
    return Classification(
        teacher=network.float_model,
        teacher_share=job.recipe.teacher_share,
        validation=material.labelled,
        batch_size=job.recipe.batch_size,
    )


def checkpoint_of(job: BuildJob, material: Material) -> Path:
    """Return the file from which a training goes on, named after all that it depends on."""
    assert material.training is not None  # noqa: S101  the plan refuses int8-qat without data
    network = sorted(material.weights.options.items())
    choices = (job.int8_scope, job.recipe, job.target.quantization, job.preprocessing, job.seed, network)
    parts = [job.identifier, material.weights.sha256, material.training.sha256, *map(repr, choices)]
    folder = cache_directory() / "training"
    folder.mkdir(exist_ok=True)
    return folder / f"{job.identifier}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:16]}.pt"


def _equalized(job: BuildJob, model: nn.Module, pictures: Dataset, profile: QuantizationProfile) -> Mapping[str, Tensor]:
    """Return the weights that are quantized: where the profile asks for it, with channels that one scale fits."""
    if "cross-layer-equalization" not in profile.options:
        return model.state_dict()
    equal = copy.deepcopy(model)
    with console.progress("measuring channels", len(pictures)) as advance:
        batches = _counted(pictures, job.calibration.batch_size, advance)
        streams = equalize_channels(equal, batches)
    console.step(f"Equalized the channels between layers: {streams or 'no'} streams")
    return equal.state_dict()


def _stay_in_float(prepared: nn.Module) -> int:
    return prepared.float_convolutions() if isinstance(prepared, QuantizableDetector) else 0


def _calibrate(job: BuildJob, prepared: nn.Module, pictures: Dataset, profile: QuantizationProfile) -> None:
    chosen = f", {profile.ranges.replace('-', ' ')}" if profile.ranges else ""
    console.step(f"Calibrating with {pictures} for {profile.engine}{chosen}")
    with console.progress("calibrating", len(pictures)) as advance:
        calibrate(prepared, _counted(pictures, job.calibration.batch_size, advance))


def _rounded(job: BuildJob, prepared: nn.Module, pictures: Dataset, profile: QuantizationProfile) -> nn.Module:
    chosen = {name: name in profile.options for name in ("gptq", "bias-correction")}
    if not any(chosen.values()):
        return prepared
    console.step(f"Rounding the weights, layer after layer: {', '.join(name for name, asked in chosen.items() if asked)}")
    batches = (torch.from_numpy(batch) for batch in pictures.batches(job.calibration.batch_size))
    with console.progress("rounding", count_layers(prepared)) as advance:
        return round_weights(
            prepared,
            batches,
            gptq=chosen["gptq"],
            bias_correction=chosen["bias-correction"],
            seed=job.seed,
            on_layer=lambda: advance(1),
        )


def _counted(pictures: Dataset, batch_size: int, advance: Callable[[int], Any]) -> Iterator[Tensor]:
    for batch in pictures.batches(batch_size):
        yield torch.from_numpy(batch)
        advance(len(batch))
