"""The likely cause of a detector's low average precision, or of missing detections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bundler import console
from bundler.data.labelled_boxes import DetectionImages, Labels
from bundler.device.detections import Detections, shown
from bundler.evaluation.average_precision import mean_average_precision
from bundler.evaluation.class_order import find_class_order
from bundler.evaluation.detector_outputs import SHOWN, DetectorOutputs, ranked_detections
from bundler.evaluation.other_preprocessing import Other, Trials, other_fits, other_normalisations
from bundler.graphs.exported_graph import ExportedGraph
from bundler.graphs.host_runs import runnable
from bundler.manifest import BoxesRecord
from bundler.targets import OptimizationLevel

__all__ = ["next_step_for_no_detection", "suspect_detector"]

IMAGES = 16  # on which other preprocessing is tried
POOR = 0.4  # mAP50 below which other preprocessing is tried
GAIN, TIMES = 0.1, 1.3  # difference and factor by which mAP50 must improve to be reported
NEAR = 0.5  # IoU above which a detection matches a labelled box
LISTED = 5  # classes listed in a message
OF_CLAIM = 0.5  # an accuracy below this share of the one that the checkpoint states is reported


Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def suspect_detector(
    graph: ExportedGraph,
    images: DetectionImages,
    seen: DetectorOutputs,
    record: BoxesRecord,
    *,
    level: OptimizationLevel,
    claims: Mapping[str, float],
) -> str | None:
    """Return the likely cause of a low FP32 mAP; None if it is not low, or without labels.

    Raises:
        DataError: an image cannot be read.
    """
    reached = record.map50
    if images.labels is None or reached is None or seen.ranked is None or reached >= POOR:
        return None
    order = _class_order(seen.ranked, images.labels)
    if order is not None:
        return order
    subset = _subset(images, [index for index, labels in enumerate(images.labels) if len(labels.classes)])
    trials = Trials()
    run = runnable(graph, level)
    before = _map50(run, subset, trials) or 0.0
    best: tuple[Other | None, float] = (None, max(before + GAIN, TIMES * before))
    for other in _others(images):
        found = _map50(run, replace(subset, preprocessing=other.preprocessing), trials)
        trials.finished += found is not None
        if found is not None and found > best[1]:
            best = (other, found)
    console.detail(f"tried {trials} on {len(subset)} images")
    poor = f"FP32 mAP50 is {reached:.1%}: check the preprocessing first"
    if best[0] is not None:
        return (
            f"{poor}. On {len(subset)} images it is {before:.1%} with the current preprocessing and {best[1]:.1%} with"
            f" `{best[0]}`. If the weights were trained with it, build with these options"
        )
    claimed = max(claims.values(), default=0.0)
    if reached >= max(OF_CLAIM * claimed, GAIN):
        return None
    said = f" The checkpoint states {claimed:.1%}." if claimed else ""
    return (
        f"{poor} (--mean, --std, --channels and --fit must be as in the training), then whether the labels have the classes of"
        f" the weights.{said} None of {trials.finished} tried variants of the preprocessing is much better"
    )


def _others(images: DetectionImages) -> list[Other]:
    current = images.preprocessing
    fits = [other for other in other_fits(current) if other.preprocessing.fit != "crop"]
    return [*other_normalisations(current), *fits]


def _subset(images: DetectionImages, places: Sequence[int]) -> DetectionImages:
    """Return up to `IMAGES` of the images at these indices, evenly spaced."""
    spread = np.unique(np.linspace(0, len(places) - 1, min(IMAGES, len(places))).round().astype(int)).tolist()
    chosen = [places[index] for index in spread]
    labels = None if images.labels is None else tuple(images.labels[index] for index in chosen)
    sizes = images.sizes and tuple(images.sizes[index] for index in chosen)
    return replace(images, paths=tuple(images.paths[index] for index in chosen), labels=labels, sizes=sizes)


def _map50(run: Run, images: DetectionImages, trials: Trials) -> float | None:
    """Return mAP50; None if the time limit is exceeded."""
    assert images.labels is not None  # noqa: S101  checked by the caller
    found = []
    for image in trials.in_time(images):
        (rows,) = run(image.pixels[None])
        found.append(ranked_detections(rows, image))
    return mean_average_precision(found, images.labels)[1] if len(found) == len(images) else None


def next_step_for_no_detection(graph: ExportedGraph, images: DetectionImages, level: OptimizationLevel) -> str:
    """Return a next step for a detector without detections: the other preprocessing with the most, if there is one.

    Raises:
        DataError: an image cannot be read.
    """
    subset = _subset(images, range(len(images)))
    trials = Trials()
    run = runnable(graph, level)
    counts: list[tuple[int, Other]] = []
    for other in _others(images):
        tried = replace(subset, preprocessing=other.preprocessing)
        found = [len(shown(run(image.pixels[None])[0]).scores) for image in trials.in_time(tried)]
        if len(found) == len(subset):
            trials.finished += 1
            counts.append((sum(found), other))
    console.detail(f"tried {trials} on {len(subset)} images")
    most, best = max(counts, key=lambda item: item[0], default=(0, None))
    if best is None or most == 0:
        return (
            "Check the preprocessing first: --mean, --std, --channels, --fit must be as in the training"
            f" (none of {trials.finished} tried variants gives a detection)."
        )
    return f"Check the preprocessing first: with `{best}`, {most} boxes are detected in {len(subset)} images."


def _class_order(found: Sequence[Detections], truth: Sequence[Labels]) -> str | None:
    """Return a message if boxes match the labels, but their classes have another order."""
    pairs = [pair for one, labels in zip(found, truth, strict=True) for pair in _pairs(one, labels)]
    labelled = sum(len(labels.classes) for labels in truth)
    if len(pairs) < labelled / 2:
        return None
    wanted, predicted = np.array(pairs, np.int64).T
    order = find_class_order(wanted, predicted)
    if order is None:
        return None
    moved = [f"{label} as {guess}" for label, guess in order.predicted.items() if label != guess]
    return (
        f"FP32 detects {len(pairs)} of {labelled} labelled boxes, but with the classes in another order: it predicts class"
        f" {', '.join(moved[:LISTED])}{' and so on' if len(moved) > LISTED else ''}. Number the classes of the labels as in the"
        " training"
    )


def _pairs(found: Detections, labels: Labels) -> list[tuple[int, int]]:
    """Return the class of each labelled box with that of its matching detection with the highest score."""
    pairs = []
    confident = found.scores > SHOWN
    boxes, classes = found.boxes[confident], found.classes[confident]
    for label, box in zip(labels.classes, labels.boxes, strict=True):
        sides = (np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])).clip(0)
        shared = sides.prod(1)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - shared
        (near,) = np.nonzero(shared > NEAR * areas)
        if len(near):
            pairs.append((int(label), int(classes[near[0]])))
    return pairs
