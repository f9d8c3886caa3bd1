"""Suspicions about a detector: what boxes that are not seen, or not where they are labelled, are probably due to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bundler import console
from bundler.data.labelled_boxes import DetectionPictures, Labels
from bundler.device.detections import Detections, shown
from bundler.evaluation.average_precision import mean_average_precision
from bundler.evaluation.class_order import find_class_order
from bundler.evaluation.other_preprocessing import Other, Trials, other_fits, other_normalisations
from bundler.evaluation.seen import Seen, guesses
from bundler.graphs.exported_graph import ExportedGraph
from bundler.graphs.host_runs import runnable
from bundler.manifest import BoxesRecord
from bundler.targets import OptimizationLevel

__all__ = ["seen_otherwise", "suspect_boxes"]

PICTURES = 16  # that other preprocessing is tried on
POOR = 0.4  # mAP50 below which other preprocessing is tried
GAIN, TIMES = 0.1, 1.3  # by how much, and how many times, mAP50 has to be better to be named
SHOWN, NEAR = 0.25, 0.5  # score and IoU from which a box is where a label is
LISTED = 5  # classes that are named
OF_CLAIM = 0.5  # share of what a checkpoint says of itself, below which that is told


Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def suspect_boxes(
    graph: ExportedGraph,
    pictures: DetectionPictures,
    seen: Seen,
    record: BoxesRecord,
    *,
    level: OptimizationLevel,
    claims: Mapping[str, float],
) -> str | None:
    """Return what FP32's mAP is probably due to; None where it is good, or where there are no labels.

    Raises:
        DataError: a picture cannot be read.
    """
    reached = record.map50
    if pictures.labels is None or reached is None or seen.ranked is None or reached >= POOR:
        return None
    order = _class_order(seen.ranked, pictures.labels)
    if order is not None:
        return order
    subset = _subset(pictures, [index for index, labels in enumerate(pictures.labels) if len(labels.classes)])
    trials = Trials()
    run = runnable(graph, level)
    before = _map50(run, subset, trials) or 0.0
    best: tuple[Other | None, float] = (None, max(before + GAIN, TIMES * before))
    for other in _others(pictures):
        found = _map50(run, replace(subset, preprocessing=other.preprocessing), trials)
        trials.finished += found is not None
        if found is not None and found > best[1]:
            best = (other, found)
    console.detail(f"tried {trials} on {len(subset)} pictures")
    poor = f"FP32 mAP50 is {reached:.1%}: check the preprocessing first"
    if best[0] is not None:
        return (
            f"{poor}. On {len(subset)} pictures it is {before:.1%} as they are prepared now, and {best[1]:.1%} with"
            f" `{best[0]}`. If the weights were trained so, build again with that"
        )
    claimed = max(claims.values(), default=0.0)
    if reached >= max(OF_CLAIM * claimed, GAIN):
        return None
    said = f" The checkpoint says {claimed:.1%} of itself." if claimed else ""
    return (
        f"{poor} (--mean, --std, --channels and --fit must be as in the training), then whether the labels have the classes of"
        f" the weights.{said} None of {trials.finished} other preprocessings that were tried is much better"
    )


def _others(pictures: DetectionPictures) -> list[Other]:
    current = pictures.preprocessing
    fits = [other for other in other_fits(current) if other.preprocessing.fit != "crop"]
    return [*other_normalisations(current), *fits]


def _subset(pictures: DetectionPictures, places: Sequence[int]) -> DetectionPictures:
    """Return up to 16 of the pictures at these places, evenly spread."""
    spread = np.unique(np.linspace(0, len(places) - 1, min(PICTURES, len(places))).round().astype(int)).tolist()
    chosen = [places[index] for index in spread]
    labels = None if pictures.labels is None else tuple(pictures.labels[index] for index in chosen)
    sizes = pictures.sizes and tuple(pictures.sizes[index] for index in chosen)
    return replace(pictures, paths=tuple(pictures.paths[index] for index in chosen), labels=labels, sizes=sizes)


def _map50(run: Run, pictures: DetectionPictures, trials: Trials) -> float | None:
    """Return mAP50; None where the time is over."""
    assert pictures.labels is not None  # noqa: S101  the caller asks
    found = []
    for picture in trials.in_time(pictures):
        (rows,) = run(picture.pixels[None])
        found.append(guesses(rows, picture))
    return mean_average_precision(found, pictures.labels)[1] if len(found) == len(pictures) else None


def seen_otherwise(graph: ExportedGraph, pictures: DetectionPictures, level: OptimizationLevel) -> str:
    """Return a next step for a detector that sees nothing: the other preprocessing with which it sees most, if any.

    Raises:
        DataError: a picture cannot be read.
    """
    subset = _subset(pictures, range(len(pictures)))
    trials = Trials()
    run = runnable(graph, level)
    counts: list[tuple[int, Other]] = []
    for other in _others(pictures):
        tried = replace(subset, preprocessing=other.preprocessing)
        found = [len(shown(run(picture.pixels[None])[0]).scores) for picture in trials.in_time(tried)]
        if len(found) == len(subset):
            trials.finished += 1
            counts.append((sum(found), other))
    console.detail(f"tried {trials} on {len(subset)} pictures")
    most, best = max(counts, key=lambda item: item[0], default=(0, None))
    if best is None or most == 0:
        return (
            "Check the preprocessing first: --mean, --std, --channels, --fit must be as in the training"
            f" (nothing is seen with {trials.finished} others that were tried either)."
        )
    return f"Check the preprocessing first: with `{best}`, {most} boxes are seen in {len(subset)} pictures."


def _class_order(found: Sequence[Detections], truth: Sequence[Labels]) -> str | None:
    """Return what to say where boxes are where they are labelled, but have the classes in another order."""
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
        f"FP32 finds {len(pairs)} of {labelled} labelled boxes, with the classes of the labels in another order: it takes class"
        f" {', '.join(moved[:LISTED])}{' and so on' if len(moved) > LISTED else ''}. Number the classes of the labels as in the"
        " training"
    )


def _pairs(found: Detections, labels: Labels) -> list[tuple[int, int]]:
    """Return the class of each labelled box with that of the best-scored detection of any class that lies on it."""
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
