"""DetectionOptions: which boxes of a detector's output are detections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["CONFIDENCE", "IOU", "DetectionOptions"]

CONFIDENCE: Final = 0.25  # the score of a detection is above this; `run --confidence` changes it
IOU: Final = 0.45  # by how much detections of one class overlap at most


@dataclass(frozen=True, kw_only=True)
class DetectionOptions:
    """Options of `run`, as of YOLOv5's detect.py; confidence and IoU from 0 to 1, classes from 0."""

    confidence: float = CONFIDENCE
    iou: float = IOU
    multi_label: bool = False
    agnostic: bool = False
    classes: tuple[int, ...] | None = None
