"""The likely cause of a classifier's low top-1 accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bundler import console
from bundler.data.labelled_images import LabelledImages
from bundler.evaluation.class_order import ClassOrder, find_class_order
from bundler.evaluation.classification import ClassifierTest, wilson
from bundler.evaluation.other_preprocessing import Other, Trials, other_fits, other_normalisations, renormalised
from bundler.graphs.exported_graph import ExportedGraph
from bundler.graphs.host_runs import runnable
from bundler.visible import visible

__all__ = ["suspect_classifier"]

Inputs = NDArray[np.float32]
Right = NDArray[np.bool_]
Run = Callable[[Inputs], Inputs]

IMAGES = 128  # on which other preprocessing is tried
MEMORY = 256 << 20  # limit for their inputs in bytes
FEWEST_WRONG = 9  # wrong predictions: an improvement of fewer cannot be significant
BATCH = 16
SIGNIFICANT = 0.05  # probability of a false alarm over all trials
BELOW_CLAIM = 0.05  # tolerated difference from the accuracy that a checkpoint states
MARGIN = 0.02  # by which another class order must be better than other preprocessing: red and blue may be classes
LISTED = 5  # classes listed in a message


CHECKED = "check the preprocessing first: --mean, --std, --channels, --fit and --resize must be as in the training"


def suspect_classifier(graph: ExportedGraph, test: ClassifierTest, claims: Mapping[str, float]) -> str | None:
    """Return the likely cause of a suspicious FP32 top-1 accuracy; None if it is not suspicious.

    Other preprocessing and another class order are tried first; the better one is reported if it is significantly better than
    the current accuracy. Otherwise an accuracy near chance, or below the one that the checkpoint states, is reported.

    Args:
        graph: FP32.
        test: results of FP32.
        claims: accuracies that the checkpoint states, from 0 to 1, by name.

    Raises:
        DataError: an image cannot be read.
    """
    images, right = test.pictures, test.fp32_ranks == 0
    if len(right) - int(right.sum()) < FEWEST_WRONG and not _is_near_chance(right, images):
        return _below_claims(right, images, claims)
    order = find_class_order(np.array(images.labels), test.fp32_predicted)
    subset = _subset(images)
    trials = Trials()
    found = _better(runnable(graph, test.level), subset, trials)
    console.detail(f"tried {trials} on {len(subset)} images")
    if order is not None and (found is None or found[2] < order.share - MARGIN):
        return _other_order(right, images, order)
    if found is not None:
        other, before, after = found
        return (
            f"{_measured(right, images)}: check the preprocessing first. On {len(subset)} images it is {before:.1%} with the"
            f" current preprocessing and {after:.1%} with `{other}`. If the weights were trained with it, build with that"
        )
    if _is_near_chance(right, images):
        return (
            f"{_measured(right, images)}: {CHECKED}; then the order of the classes, which is that of the sorted folder"
            f" names; then whether the weights were trained for these classes. None of {trials.finished} tried variants of the"
            " preprocessing is significantly better"
        )
    return _below_claims(right, images, claims)


def _below_claims(right: Right, images: LabelledImages, claims: Mapping[str, float]) -> str | None:
    if not claims:
        return None
    name, claimed = max(claims.items(), key=lambda item: item[1])
    if wilson(int(right.sum()), len(right))[1] >= claimed - BELOW_CLAIM:
        return None
    return (
        f"{_measured(right, images)}, but the checkpoint states {claimed:.1%} ({name}): {CHECKED}; then the order of the"
        " classes; then whether these images are like those of that evaluation"
    )


def _is_near_chance(right: Right, images: LabelledImages) -> bool:
    """Return whether the accuracy is not significantly above that of always predicting the most frequent class."""
    return wilson(int(right.sum()), len(right))[0] <= _chance(images)


def _chance(images: LabelledImages) -> float:
    return max(1 / len(images.classes), float(np.bincount(images.labels).max()) / len(images))


def _other_order(right: Right, images: LabelledImages, order: ClassOrder) -> str:
    names = [_name(Path(name)) for name in images.classes]
    moved = [f"{names[label]} as {guess}" for label, guess in order.predicted.items() if label != guess]
    trained = {guess: names[label] for label, guess in order.predicted.items()}
    sequence = [trained.get(index, "?") for index in range(min(len(names), LISTED))]
    return (
        f"{_measured(right, images)}, but {order.share:.1%} with the classes in another order:"
        f" it predicts {_listed(moved)}. Rename the folders so that their sorted names have the order of the training:"
        f" {_listed([f'{index} {name}' for index, name in enumerate(sequence)], len(names))}"
    )


def _listed(items: Sequence[str], count: int | None = None) -> str:
    more = (len(items) if count is None else count) - LISTED
    return ", ".join(items[:LISTED]) + (f" and {more} more" if more > 0 else "")


def _subset(images: LabelledImages) -> LabelledImages:
    """Return the images on which other preprocessing is tried, evenly spaced and therefore from all classes."""
    height, width = images.preprocessing.input_size
    count = min(IMAGES, max(MEMORY // (12 * height * width), 1), len(images))
    chosen = np.unique(np.linspace(0, len(images) - 1, count).round().astype(int)).tolist()
    return replace(
        images,
        paths=tuple(images.paths[index] for index in chosen),
        labels=tuple(images.labels[index] for index in chosen),
    )


def _better(run: Run, images: LabelledImages, trials: Trials) -> tuple[Other, float, float] | None:
    """Return the best other preprocessing if it is significantly better, with the accuracy before and after.

    Means, standard deviations and channel orders are tried first, then other fits with the best of these.
    """
    current, labels = images.preprocessing, np.array(images.labels)
    batches = [batch for batch, _ in images.batches(BATCH)]
    before = _right(run, batches, labels, trials)
    if before is None:
        return None
    normalisations = other_normalisations(current)
    attempts = len(normalisations) + len(other_fits(current))
    best, reached = Other(preprocessing=current, options=()), before
    for other in normalisations:
        changed = (renormalised(batch, current, other.preprocessing) for batch in batches)
        right = _right(run, changed, labels, trials)
        trials.finished += right is not None
        best, reached = _kept((best, reached), other, right)
    if not _significant(before, reached, attempts):
        best, reached = Other(preprocessing=current, options=()), before
    start, options = reached, best.options
    for fit in other_fits(best.preprocessing):
        other = replace(fit, options=(*options, *fit.options))
        fitted = replace(images, preprocessing=other.preprocessing)
        right = _right(run, (batch for batch, _ in fitted.batches(BATCH)), labels, trials)
        trials.finished += right is not None
        if right is not None and _significant(start, right, attempts):
            best, reached = _kept((best, reached), other, right)
    if not _significant(before, reached, attempts) or _is_near_chance(reached, images):
        return None
    return best, float(before.mean()), float(reached.mean())


def _kept(best: tuple[Other, Right], other: Other, right: Right | None) -> tuple[Other, Right]:
    return best if right is None or right.sum() <= best[1].sum() else (other, right)


def _right(run: Run, batches: Iterable[Inputs], labels: NDArray[np.int64], trials: Trials) -> Right | None:
    """Return which predictions are right, bool [N]; None if the time limit is exceeded."""
    answers = [run(batch).argmax(1) for batch in trials.in_time(batches)]
    predicted = np.concatenate(answers) if answers else np.empty(0, np.int64)
    if len(predicted) < len(labels):
        return None
    right: Right = predicted == labels
    return right


def _significant(before: Right, after: Right, attempts: int) -> bool:
    """Return whether the improvement is significant: an exact sign test, corrected for `attempts` tests (Bonferroni)."""
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    count = won + lost
    chance = sum(math.comb(count, more) for more in range(won, count + 1)) / 2**count
    return won > lost and chance < SIGNIFICANT / attempts


def _measured(right: Right, images: LabelledImages) -> str:
    return f"FP32 top-1 is {right.mean():.2%} on {_name(images.folder)} (chance: {_chance(images):.1%})"


def _name(path: Path) -> str:
    """Return a folder's own name in printable characters; the sentence is stored in the manifest."""
    return visible(path.name or path)
