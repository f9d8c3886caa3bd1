"""Labels: the labelled objects of an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["NO_OBJECTS", "SLACK", "Labels"]

SLACK = 1e-3  # tolerance for boxes that extend beyond the image, relative to its size


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The labelled objects of an image.

    Args:
        classes: int64 [K].
        boxes: left, top, right, bottom; float64 [K, 4]; relative to the image size, or in pixels if stated.
        crowd: bool [K], COCO's `iscrowd`: regions of many objects, in which detections are ignored; None if there are none.
    """

    classes: NDArray[np.int64]
    boxes: NDArray[np.float64]
    crowd: NDArray[np.bool_] | None = None

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Objects that are not crowds, bool [K]."""
        return np.ones(len(self.classes), np.bool_) if self.crowd is None else ~self.crowd


NO_OBJECTS = Labels(classes=np.empty(0, np.int64), boxes=np.empty((0, 4)))
