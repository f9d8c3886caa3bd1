"""Detect wrong predictions that are due to another order of the classes than in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ClassOrder", "find_class_order"]

EXPLAINED = 0.8  # minimum accuracy with the other order
GAIN = 0.3  # minimum gain in accuracy
EACH = 3  # minimum mean number of samples per class: with fewer, an order can fit any predictions by chance


@dataclass(frozen=True, kw_only=True)
class ClassOrder:
    """The class that is predicted for each labelled class, and the accuracy with that order (0 to 1)."""

    predicted: Mapping[int, int]
    share: float


def find_class_order(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> ClassOrder | None:
    """Return the order of classes with which most of `labels` equal `predicted`, both int64 [N]; None if there is none."""
    if len(labels) < EACH * len(np.unique(labels)):
        return None
    pairs, counts = np.unique(np.stack([labels, predicted]), axis=1, return_counts=True)
    order: dict[int, int] = {}
    explained = 0
    for index in np.argsort(-counts, kind="stable").tolist():
        label, guess = pairs[:, index].tolist()
        if label not in order and guess not in order.values():
            order[label] = guess
            explained += int(counts[index])
    share = explained / len(labels)
    if share < EXPLAINED or share < float((labels == predicted).mean()) + GAIN:
        return None
    return ClassOrder(predicted=dict(sorted(order.items())), share=share)
