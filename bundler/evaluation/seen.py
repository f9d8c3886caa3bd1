"""What a detector sees in pictures: what a device shows, and every guess, which average precision ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bundler import console
from bundler.data.labelled_boxes import DetectionPicture, DetectionPictures
from bundler.device.detections import Detections, detect, shown
from bundler.graphs.exported_graph import ExportedGraph
from bundler.graphs.host_runs import runnable
from bundler.targets import OptimizationLevel

__all__ = ["Seen", "guesses", "look"]

RANKED = (0.001, 0.6)  # for average precision every guess counts, as YOLOv5's own val.py has it


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a graph sees in each picture.

    `shown` is what a device shows, in pixels of the input; `ranked`, where there are labels, every guess, in shares of the
    picture's sides as the labels are.
    """

    shown: tuple[Detections, ...]
    ranked: tuple[Detections, ...] | None


def look(graph: ExportedGraph, pictures: DetectionPictures, level: OptimizationLevel) -> Seen:
    """Run the graph on each picture.

    Raises:
        DataError: a picture cannot be read.
    """
    run = runnable(graph, level)
    seen, ranked = [], []
    with console.progress(f"measuring {graph.path.stem}", len(pictures)) as advance:
        for picture in pictures:
            (rows,) = run(picture.pixels[None])
            seen.append(shown(rows))
            if pictures.labels is not None:
                ranked.append(guesses(rows, picture))
            advance(1)
    return Seen(shown=tuple(seen), ranked=tuple(ranked) if pictures.labels is not None else None)


def guesses(rows: NDArray[np.float32], picture: DetectionPicture) -> Detections:
    """Return every box of an output for one picture, in shares of the picture's sides and cut off at its edges."""
    left, top, width, height = picture.frame
    found = detect(rows, *RANKED, multi_label=True)
    boxes = (found.boxes - (left, top) * 2) / ((width, height) * 2)
    return found._replace(boxes=boxes.clip(0, 1))
