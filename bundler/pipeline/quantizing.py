"""Quantizing: a network prepared for INT8, with ranges from calibration or with weights that were trained for it."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bundler import console
from bundler.datasets import Dataset
from bundler.pipeline.material import Material
from bundler.plan import BuildJob
from bundler.quantization import calibrate, count_layers, equalize_channels, round_weights
from bundler.quantization.training import TrainingProgress, TrainingRecord, train
from bundler.resources import cache_directory

__all__ = ["Parser", "calibrated", "checkpoint_of", "trained"]

Parser = Callable[..., nn.Module]


def calibrated(
    job: BuildJob, material: Material, parser: Parser, options: Mapping[str, Any], float_model: nn.Module
) -> tuple[nn.Module, nn.Module]:
    """Return the network with ranges from the calibration pictures and rounded weights, as the profile asks (PTQ).

    Beside it stands the same network before the rounding, to compare its layers with.
    """
    weights = _equalized(job, float_model, torch.from_numpy(material.golden[:1]))
    prepared = parser(**options, weights=weights, quantize=True, target=job.target.quantization)
    _calibrate(job, prepared, material.calibration)
    reference = copy.deepcopy(prepared)
    if "compensated-rounding" in job.target.quantization.refinements:
        _round(job, prepared, material.calibration)
    return prepared, reference


def trained(
    job: BuildJob, material: Material, parser: Parser, options: Mapping[str, Any], float_model: nn.Module
) -> tuple[nn.Module, nn.Module, TrainingRecord]:
    """Return the network trained for INT8 (QAT); interrupted, it goes on where it was when the same command is given again.

    Beside it stands the float network that it was before, to compare its layers with.

    Raises:
        TrainingError: it cannot go on.
    """
    pictures, validation = material.training, material.labelled
    assert pictures is not None  # noqa: S101  the plan refuses int8-qat without data
    assert validation is not None  # noqa: S101  as above
    weights = _equalized(job, float_model, torch.from_numpy(material.golden[:1]))
    prepared = parser(**options, weights=weights, quantize=True, is_qat=True, target=job.target.quantization)
    reference = parser(**options, weights=weights, quantize=True, target=job.target.quantization)
    checkpoint = checkpoint_of(job, material)
    console.step(f"Training for INT8 on {len(pictures)} pictures, {job.recipe.epochs} epochs")
    if checkpoint.exists():
        console.detail(f"going on from {checkpoint}")
    total = job.recipe.epochs * math.ceil(len(pictures) / job.recipe.batch_size)
    with console.progress("training", total) as advance:
        done = 0

        def report(now: TrainingProgress) -> None:
            nonlocal done
            reached = (now.epoch - 1) * now.steps + now.step
            advance(reached - done, f"epoch {now.epoch}: loss {now.loss:.3f}, top-1 {now.top1:.1%}")
            done = reached

        record = train(
            prepared,
            pictures,
            validation,
            job.recipe,
            teacher=float_model,
            checkpoint=checkpoint,
            seed=job.seed,
            report=report,
            on_epoch=lambda epoch, top1: console.detail(f"epoch {epoch}: top-1 {top1:.2%} on the validation pictures"),
        )
    return prepared, reference, record


def checkpoint_of(job: BuildJob, material: Material) -> Path:
    """Return the file from which a training goes on, named after all that it depends on."""
    assert material.training is not None  # noqa: S101  the plan refuses int8-qat without data
    choices = (job.recipe, job.target.quantization, job.preprocessing, job.seed)
    parts = [job.identifier, material.weights.sha256, material.training.sha256, *map(repr, choices)]
    folder = cache_directory() / "training"
    folder.mkdir(exist_ok=True)
    return folder / f"{job.identifier}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:16]}.pt"


def _equalized(job: BuildJob, model: nn.Module, sample: Tensor) -> Mapping[str, Tensor]:
    """Return the weights that are quantized: where the profile asks for it, with channels that one scale fits."""
    if "equalized-channels" not in job.target.quantization.refinements:
        return model.state_dict()
    equal = copy.deepcopy(model)
    changed = equalize_channels(equal, sample)
    console.step(f"Equalizing channels: {changed} of them changed")
    return equal.state_dict()


def _calibrate(job: BuildJob, prepared: nn.Module, pictures: Dataset) -> None:
    console.step(f"Calibrating with {pictures} for {job.target.quantization.engine}")
    with console.progress("calibrating", len(pictures)) as advance:
        calibrate(prepared, _counted(pictures, job.calibration.batch_size, advance))


def _round(job: BuildJob, prepared: nn.Module, pictures: Dataset) -> None:
    console.step("Rounding the weights so that each error is made up for by the next ones (GPTQ)")
    batches = (torch.from_numpy(batch) for batch in pictures.batches(job.calibration.batch_size))
    with console.progress("rounding", count_layers(prepared)) as advance:
        round_weights(prepared, batches, seed=job.seed, on_layer=lambda: advance(1))


def _counted(pictures: Dataset, batch_size: int, advance: Callable[[int], Any]) -> Iterator[Tensor]:
    for batch in pictures.batches(batch_size):
        yield torch.from_numpy(batch)
        advance(len(batch))
