"""Inputs of a build: weights, calibration images, golden inputs and labelled images, as the job asks for them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bundler import console
from bundler.data.calibration_images import CalibrationImages, load_calibration_images, require_unlike, synthetic_images
from bundler.data.labelled_boxes import DetectionImages, load_detection_images, load_detection_split
from bundler.data.labelled_images import LabelledImages, Split, load_split, load_validation
from bundler.models.checkpoints import LoadedWeights, load_weights
from bundler.models.registry import load_parser
from bundler.plan import BuildJob, QatRequest
from bundler.quantization.quantized_model import CalibrationSet
from bundler.resources import cache_directory
from bundler.training_options import TrainingOptions
from bundler.visible import visible

__all__ = ["Inputs", "LabelledInputs", "TrainingInputs", "load_inputs", "more_calibration_images"]

INITIALIZATION_IMAGES = 16  # for the BatchNorm statistics of random weights
MORE = 4  # times as many calibration images, if more are needed

Labelled = LabelledImages | DetectionImages
LabelledSplit = Split[LabelledImages] | Split[DetectionImages]


@dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """Images to train on, the options of the training, and the file from which an interrupted training resumes."""

    images: Labelled
    recipe: TrainingOptions
    checkpoint: Path


@dataclass(frozen=True, kw_only=True)
class LabelledInputs:
    """Images to measure accuracy on; `training` is None unless int8-qat was requested."""

    validation: Labelled
    training: TrainingInputs | None


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Weights, calibration images, golden inputs (float32 [N, 3, H, W]), and labelled images if --data was given."""

    weights: LoadedWeights
    calibration: CalibrationSet
    golden: NDArray[np.float32]
    labelled: LabelledInputs | None


def load_inputs(job: BuildJob) -> Inputs:
    """Load the weights and the images.

    Raises:
        CheckpointError, CalibrationError, DataError: they cannot be read.
    """
    request = job.weights
    weights = load_weights(
        request.source,
        job.variant,
        parser=load_parser(job.variant),
        num_classes=request.num_classes,
        pictures=lambda: synthetic_images(job.preprocessing, count=INITIALIZATION_IMAGES, seed=job.seed).pictures,
        seed=job.seed,
        cfg=request.cfg,
        key=request.key,
    )
    console.step(f"Weights: {weights.source}, {weights.num_classes} classes" + ("" if weights.trained else " (NOT TRAINED)"))
    if weights.network is not None:
        console.step(f"Network: {weights.network}")
    for note in weights.notes:
        console.detail(note)
    labelled = _load_labelled(job, weights)
    calibration, golden = _load_calibration(job)
    return Inputs(
        weights=weights,
        calibration=CalibrationSet(images=calibration, batch_size=job.calibration.batch_size, seed=job.seed),
        golden=golden,
        labelled=labelled,
    )


def _load_calibration(job: BuildJob) -> tuple[CalibrationImages, NDArray[np.float32]]:
    """Return the calibration images and the golden inputs, which are taken from the same folder."""
    request, count = job.calibration, job.target.verification.golden_inputs
    if request.folder is None:
        console.warn("calibrating with SYNTHETIC images; give images like those of the device with --calibration DIR")
        synthetic = synthetic_images(job.preprocessing, count=request.pictures + count, seed=job.seed + 1)
        return synthetic.split(count)
    images = load_calibration_images(request.folder, job.preprocessing, count=request.pictures + count, seed=job.seed)
    calibration, golden = images.split(count)
    name = f"the {len(golden)} golden images, the last of those that the seed chose from {visible(request.folder)},"
    require_unlike(golden, job.preprocessing, name)
    return calibration, golden


def _load_labelled(job: BuildJob, weights: LoadedWeights) -> LabelledInputs | None:
    if job.qat is not None:
        split = _load_split(job, job.qat, weights)
        recipe = job.qat.training
        checkpoint = _checkpoint(job, recipe, weights, split.train)
        training = TrainingInputs(images=split.train, recipe=recipe, checkpoint=checkpoint)
        return LabelledInputs(validation=split.validation, training=training)
    if job.accuracy is None:
        return None
    return LabelledInputs(validation=_load_validation(job, job.accuracy.data, weights), training=None)


def _load_split(job: BuildJob, request: QatRequest, weights: LoadedWeights) -> LabelledSplit:
    data, preprocessing, classes = request.accuracy.data, job.preprocessing, weights.num_classes
    if job.variant.task == "detection":
        names = weights.class_names
        return load_detection_split(data, preprocessing, num_classes=classes, class_names=names, seed=job.seed)
    return load_split(data, preprocessing, num_classes=classes, seed=job.seed)


def _load_validation(job: BuildJob, data: Path, weights: LoadedWeights) -> Labelled:
    if job.variant.task == "detection":
        return load_detection_images(data, job.preprocessing, num_classes=weights.num_classes, class_names=weights.class_names)
    return load_validation(data, job.preprocessing, num_classes=weights.num_classes)


def _checkpoint(job: BuildJob, recipe: TrainingOptions, weights: LoadedWeights, images: Labelled) -> Path:
    """Return the file of a training's state; its name covers everything on which the trained weights depend."""
    network = sorted(weights.options.items())
    choices = (job.int8_scope, recipe, job.target.quantization, job.preprocessing, job.seed, network)
    parts = [job.identifier, weights.sha256, images.sha256, *map(repr, choices)]
    folder = cache_directory() / "training"
    folder.mkdir(exist_ok=True)
    return folder / f"{job.identifier}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:16]}.pt"


def more_calibration_images(job: BuildJob, inputs: Inputs) -> CalibrationImages | None:
    """Return four times as many calibration images, without the golden inputs; None if the folder has no more."""
    request, golden = job.calibration, len(inputs.golden)
    asked = request.pictures + golden
    if request.folder is None or len(inputs.calibration.images) < request.pictures:
        return None
    images = load_calibration_images(request.folder, job.preprocessing, count=MORE * asked, seed=job.seed)
    if len(images) <= asked:
        return None
    kept = [index for index in range(len(images)) if not request.pictures <= index < asked]
    return replace(images, pictures=images.pictures[kept], digests=tuple(images.digests[index] for index in kept))
