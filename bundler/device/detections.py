"""Detections: a detector's output after non-maximum suppression, and how many detections two outputs have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .detection_options import CONFIDENCE, IOU

__all__ = ["Detections", "agreeing", "boxes_agreement", "detect", "matched", "shown"]

CANDIDATES: Final = 30_000  # boxes of one image that are considered
DETECTIONS: Final = 300  # and that are kept
MATCHING_IOU: Final = 0.5

Boxes = NDArray[np.float64]


class Detections(NamedTuple):
    """The detections in one image, best first: classes and scores [K]; boxes [K, 4]: left, top, right, bottom."""

    classes: NDArray[np.int64]
    scores: NDArray[np.float64]
    boxes: Boxes


def detect(
    rows: NDArray[np.float32],
    confidence: float,
    iou: float,
    *,
    multi_label: bool = False,
    agnostic: bool = False,
    classes: Sequence[int] | None = None,
) -> Detections:
    """Suppress the non-maximum boxes of a detector's output for one image, as YOLOv5's detect.py does.

    Args:
        rows: output for one image [boxes, 5 + classes]: center x and y, width, height, objectness, class scores.
        confidence: detections score above this, 0 to 1.
        iou: detections of one class overlap by this at most, 0 to 1.
        multi_label: a box is a detection of each class that scores above the confidence, as in YOLOv5's val.py, and not only of
            its best class.
        agnostic: a better box of any class suppresses a box.
        classes: only these classes; None for all.

    Returns:
        Detections with boxes in pixels of the input.
    """
    wide = rows.astype(np.float64)
    wide = wide[wide[:, 4] > confidence]  # a score is never above its objectness
    scores = wide[:, 4:5] * wide[:, 5:]
    counted = scores > confidence
    if not multi_label:
        counted &= np.arange(scores.shape[1]) == scores.argmax(1)[:, None]
    if classes is not None:
        counted &= np.isin(np.arange(scores.shape[1]), classes)
    row, kinds = np.nonzero(counted)
    order = np.argsort(-scores[row, kinds], kind="stable")[:CANDIDATES]
    row, kinds = row[order], kinds[order]
    middle, half = wide[row, :2], wide[row, 2:4] / 2
    boxes = np.concatenate([middle - half, middle + half], axis=1)
    kept = unsuppressed(boxes, np.zeros_like(kinds) if agnostic else kinds, iou)
    return Detections(kinds[kept], scores[row, kinds][kept], boxes[kept])


def shown(rows: NDArray[np.float32]) -> Detections:
    """Return the detections in an output for one image with the default confidence (0.25) and IoU (0.45)."""
    return detect(rows, CONFIDENCE, IOU)


def unsuppressed(boxes: Boxes, groups: NDArray[np.int64], iou: float) -> list[int]:
    """Return the indices of the boxes, given best first, that no better kept box of their group overlaps by more than `iou`."""
    kept: list[int] = []
    left = np.arange(len(boxes))
    while len(left) and len(kept) < DETECTIONS:
        best, left = left[0], left[1:]
        kept.append(int(best))
        rival = groups[left] == groups[best]
        rival[rival] = overlaps(boxes[best], boxes[left[rival]]) > iou
        left = left[~rival]
    return kept


def overlaps(box: Boxes, boxes: Boxes) -> NDArray[np.float64]:
    """Return the intersection over union of a box with each of the others; of equal boxes it is 1, even of empty ones."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = sides.clip(0).prod(1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - shared
    return np.where((boxes == box).all(1), 1.0, shared / np.where(union > 0, union, 1.0))


def boxes_agreement(outputs: NDArray[np.float32], reference: NDArray[np.float32]) -> float | None:
    """Return the share of detections that both have, in [N, boxes, 5 + classes]: 1 if all match; None if neither has any."""
    pairs = [agreeing(shown(one), shown(other)) for one, other in zip(outputs, reference, strict=True)]
    count = sum(count for _, count in pairs)
    return sum(common for common, _ in pairs) / count if count else None


def agreeing(found: Detections, reference: Detections) -> tuple[int, int]:
    """Return how many detections of both have a partner among the other's, and how many both have."""
    return 2 * matched(found, reference), len(found.scores) + len(reference.scores)


def matched(found: Detections, reference: Detections) -> int:
    """Count the detections with a partner in the reference: of the same class, with an IoU of at least 0.5, and of no other's.

    Detections are matched best first, each with the one that it overlaps most.
    """
    taken = np.zeros(len(reference.scores), dtype=bool)
    for index, kind in enumerate(found.classes):
        fit = np.where(taken | (reference.classes != kind), 0, overlaps(found.boxes[index], reference.boxes))
        if fit.max(initial=0) >= MATCHING_IOU:
            taken[fit.argmax()] = True
    return int(taken.sum())
