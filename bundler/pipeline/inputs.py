"""Material: the weights and pictures a build starts from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundler import console
from bundler.data.calibration_images import Dataset, load_pictures, require_unlike, synthetic_pictures
from bundler.data.labelled_boxes import DetectionPictures, load_detection_pictures, load_detection_split
from bundler.data.labelled_images import LabelledPictures, load_split, load_validation
from bundler.models.checkpoints import LoadedWeights, load_weights
from bundler.models.registry import load_parser
from bundler.plan import BuildJob
from bundler.visible import visible

__all__ = ["Material", "gather", "more_pictures"]

INITIALIZATION_PICTURES = 16  # for the statistics of random weights
MORE = 4  # times as many pictures, where those asked for were too few


@dataclass(frozen=True, kw_only=True)
class Material:
    """Weights; pictures to calibrate with, golden ones (float32 [N, 3, H, W]), labelled ones to measure and train with."""

    weights: LoadedWeights
    calibration: Dataset
    golden: NDArray[np.float32]
    labelled: LabelledPictures | DetectionPictures | None
    training: LabelledPictures | DetectionPictures | None


def gather(job: BuildJob) -> Material:
    """Read the weights, and the pictures to calibrate with and to compare on.

    Raises:
        CheckpointError, CalibrationError, DataError: they cannot be read.
    """
    weights = load_weights(
        job.weights,
        job.variant,
        parser=load_parser(job.variant),
        num_classes=job.num_classes,
        pictures=lambda: synthetic_pictures(job.preprocessing, count=INITIALIZATION_PICTURES, seed=job.seed).pictures,
        seed=job.seed,
        cfg=job.cfg,
        key=job.weights_key,
    )
    console.step(f"Weights: {weights.source}, {weights.num_classes} classes" + ("" if weights.trained else " (NOT TRAINED)"))
    if weights.network is not None:
        console.step(f"Network: {weights.network}")
    for note in weights.notes:
        console.detail(note)
    labelled, training = _labelled(job, weights)
    request, golden = job.calibration, job.target.verification.golden_inputs
    if request.folder is None:
        console.warn("calibrating with SYNTHETIC pictures; --calibration DIR takes pictures like those the device will see")
        pictures = synthetic_pictures(job.preprocessing, count=request.pictures + golden, seed=job.seed + 1)
    else:
        pictures = load_pictures(request.folder, job.preprocessing, count=request.pictures + golden, seed=job.seed)
    calibration, golden_pictures = pictures.split(golden)
    if request.folder is not None:
        name = (
            f"the {len(golden_pictures)} golden images, the last of those that the seed chose from {visible(request.folder)},"
        )
        require_unlike(golden_pictures, job.preprocessing, name)
    return Material(weights=weights, calibration=calibration, golden=golden_pictures, labelled=labelled, training=training)


Labelled = LabelledPictures | DetectionPictures


def _labelled(job: BuildJob, weights: LoadedWeights) -> tuple[Labelled | None, Labelled | None]:
    """Return what to measure on, and what to train with; None where nothing was given."""
    if job.data is None:
        return None, None
    training = "int8-qat" in job.modes
    if job.variant.task == "detection":
        facts: dict[str, Any] = {"num_classes": weights.num_classes, "class_names": weights.class_names}
        if not training:
            return load_detection_pictures(job.data, job.preprocessing, **facts), None
        boxes = load_detection_split(job.data, job.preprocessing, seed=job.seed, **facts)
        return boxes.validation, boxes.train
    if not training:
        return load_validation(job.data, job.preprocessing, num_classes=weights.num_classes), None
    split = load_split(job.data, job.preprocessing, num_classes=weights.num_classes, seed=job.seed)
    return split.validation, split.train


def more_pictures(job: BuildJob, material: Material) -> Dataset | None:
    """Return four times as many pictures to calibrate with, the golden ones not among them; None where there are no more."""
    request, golden = job.calibration, len(material.golden)
    asked = request.pictures + golden
    if request.folder is None or len(material.calibration) < request.pictures:
        return None
    pictures = load_pictures(request.folder, job.preprocessing, count=MORE * asked, seed=job.seed)
    if len(pictures) <= asked:
        return None
    kept = [index for index in range(len(pictures)) if not request.pictures <= index < asked]
    return replace(pictures, pictures=pictures.pictures[kept], digests=tuple(pictures.digests[index] for index in kept))
