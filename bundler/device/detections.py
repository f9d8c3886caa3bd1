"""What a device calls a detection: the functions of the device runner itself, so that it is told in one place."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bundler.resources import resource

__all__ = ["Detections", "agreeing", "detect", "matched", "shown"]


class Detections(NamedTuple):
    """What a detector sees in one picture, best first: classes and scores [K]; left, top, right and bottom [K, 4]."""

    classes: NDArray[np.int64]
    scores: NDArray[np.float64]
    boxes: NDArray[np.float64]


def detect(rows: NDArray[np.float32], confidence: float, iou: float, *, multi_label: bool = False) -> Detections:
    """Read a detector's output for one picture [boxes, 5 + classes]; boxes come in pixels of the input.

    A box counts for its best class where that scores above the confidence, or with `multi_label` for each class that does; of
    those of a class that overlap by more than `iou`, the best stays.
    """
    return Detections(*_runner().detect(rows, confidence, iou, multi_label=multi_label))


def shown(rows: NDArray[np.float32]) -> Detections:
    """Return what a device shows by default: each box for its best class above 0.25, suppressed at an IoU of 0.45."""
    runner = _runner()
    return detect(rows, runner.CONFIDENCE, runner.IOU)


def matched(found: Detections, reference: Detections) -> int:
    """Count the detections that have a partner in the reference: the same class, an IoU of at least 0.5, and no other's."""
    count: int = _runner().matched(found, reference)
    return count


def agreeing(found: Detections, reference: Detections) -> tuple[int, int]:
    """Count the detections of both that have a partner among the other's, and all of both."""
    return 2 * matched(found, reference), len(found.scores) + len(reference.scores)


@cache
def _runner() -> ModuleType:
    path = resource("templates", "runner.py")
    module = ModuleType("runner")
    module.__file__ = str(path)
    exec(compile(path.read_text("utf-8"), path, "exec"), module.__dict__)  # noqa: S102  an import would write bytecode beside it
    return module
