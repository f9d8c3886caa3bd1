"""The labelled objects of an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["NO_OBJECTS", "SLACK", "Labels"]

SLACK = 1e-3  # of an image's side, by which tools let a box stick out of it


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The objects in an image: classes int64 [K]; left, top, right and bottom float64 [K, 4].

    `crowd`, bool [K] or None where there is none, marks regions of many objects: what a detector finds in them counts neither
    for nor against it, as COCO has it.
    """

    classes: NDArray[np.int64]
    boxes: NDArray[np.float64]
    crowd: NDArray[np.bool_] | None = None

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Which of them are objects to find, bool [K]."""
        return np.ones(len(self.classes), np.bool_) if self.crowd is None else ~self.crowd


NO_OBJECTS = Labels(classes=np.empty(0, np.int64), boxes=np.empty((0, 4)))
