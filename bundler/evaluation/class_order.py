"""Whether a classifier's mistakes come from classes in another order than it was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ClassOrder", "find_class_order"]

EXPLAINED = 0.8  # share of what is seen that another order has to make right
GAIN = 0.3  # by how much that has to be more than what is right already
EACH = 3  # things seen of each class at least, on the average: of fewer, chance makes an order out of any answers


@dataclass(frozen=True, kw_only=True)
class ClassOrder:
    """For each labelled class, which one is predicted in its place; with that, `share` would be right."""

    predicted: Mapping[int, int]
    share: float


def find_class_order(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> ClassOrder | None:
    """Return the order of classes with which most of `labels` would equal `predicted`, both int64 [N]; None where none does."""
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
