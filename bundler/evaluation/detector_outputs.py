"""Detections of an exported graph: those above the score threshold, and all for average precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bundler import console
from bundler.data.labelled_boxes import DetectionImage, DetectionImages
from bundler.device.detection_options import CONFIDENCE
from bundler.device.detections import Detections, detect, shown
from bundler.graphs.exported_graph import ExportedGraph
from bundler.graphs.host_runs import runnable
from bundler.targets import OptimizationLevel

__all__ = ["SHOWN", "DetectorOutputs", "ranked_detections", "run_detector"]

SHOWN = CONFIDENCE
RANKED = (0.001, 0.6)  # score and IoU thresholds for average precision, as in YOLOv5's val.py


@dataclass(frozen=True, kw_only=True)
class DetectorOutputs:
    """The detections of a graph in each image.

    Args:
        shown: with the device's default thresholds; boxes in pixels of the input.
        ranked: with the thresholds for average precision; boxes relative to the image size; None without labels.
    """

    shown: tuple[Detections, ...]
    ranked: tuple[Detections, ...] | None


def run_detector(graph: ExportedGraph, images: DetectionImages, level: OptimizationLevel) -> DetectorOutputs:
    """Run the graph on each image.

    Raises:
        DataError: an image cannot be read.
    """
    run = runnable(graph, level)
    seen, ranked = [], []
    with console.progress(f"measuring {graph.path.stem}", len(images)) as advance:
        for image in images:
            (rows,) = run(image.pixels[None])
            seen.append(shown(rows))
            if images.labels is not None:
                ranked.append(ranked_detections(rows, image))
            advance(1)
    return DetectorOutputs(shown=tuple(seen), ranked=tuple(ranked) if images.labels is not None else None)


def ranked_detections(rows: NDArray[np.float32], image: DetectionImage) -> Detections:
    """Return the detections for average precision in one image; boxes are relative to its size and clipped to it."""
    left, top, width, height = image.frame
    found = detect(rows, *RANKED, multi_label=True)
    boxes = (found.boxes - (left, top) * 2) / ((width, height) * 2)
    return found._replace(boxes=boxes.clip(0, 1))
