"""Boxes: whether a detector still sees in INT8 what it sees in FP32, and what of that is right where labels are given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bundler import console
from bundler.errors import DataError
from bundler.export.graph import ExportedGraph
from bundler.export.reference import runnable
from bundler.labelled_boxes import DetectionPicture, DetectionPictures
from bundler.manifest import BoxesRecord
from bundler.pipeline.average_precision import mean_average_precision
from bundler.targets import OptimizationLevel
from bundler.verification.detections import Detections, agreeing, detect, shown

__all__ = ["BoxesTest", "Seen", "prepare_boxes"]

RANKED = (0.001, 0.6)  # for average precision every guess of every class counts, as in YOLOv5's own val.py
DRAWS = 2000  # of all pictures, for the interval

Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a graph sees in each picture.

    `shown` is what a device shows, in pixels of the input; `ranked`, where there are labels, every guess, in shares of the
    picture's sides as the labels are.
    """

    shown: tuple[Detections, ...]
    ranked: tuple[Detections, ...] | None


@dataclass(frozen=True, kw_only=True)
class BoxesTest:
    """Pictures, what FP32 sees in them, and how much of that is right."""

    pictures: DetectionPictures
    level: OptimizationLevel
    seen: Seen
    fp32: BoxesRecord

    def measure(self, graph: ExportedGraph) -> BoxesRecord:
        """Return how much an INT8 graph sees of what FP32 sees, and how much less is right.

        Raises:
            DataError: a picture cannot be read.
        """
        seen = _look(graph, self.pictures, self.level)
        record = _record(self.pictures, seen)
        pairs = zip(seen.shown, self.seen.shown, strict=True)
        agreed = np.array([agreeing(own, other) for own, other in pairs])
        share, interval = _share(agreed)
        drop = None
        if record.map50_95 is not None and self.fp32.map50_95 is not None:
            drop = self.fp32.map50_95 - record.map50_95
        return record.model_copy(update={"agreement": share, "agreement_interval": interval, "drop": drop})


def prepare_boxes(fp32: ExportedGraph, pictures: DetectionPictures, *, level: OptimizationLevel) -> BoxesTest:
    """Look at every picture with the float graph.

    Raises:
        DataError: a picture cannot be read, or nothing is seen in any of them, so that nothing could be compared.
    """
    seen = _look(fp32, pictures, level)
    if not any(len(found.scores) for found in seen.shown):
        raise DataError(
            f"FP32 sees nothing in the {len(pictures)} pictures of {pictures.folder}: no score is high enough",
            next_step="Give pictures of what the network was trained to find, or trained weights (--weights FILE).",
        )
    return BoxesTest(pictures=pictures, level=level, seen=seen, fp32=_record(pictures, seen))


def _record(pictures: DetectionPictures, seen: Seen) -> BoxesRecord:
    """Return what is seen by itself, without a comparison."""
    precise = None
    if seen.ranked is not None and pictures.labels is not None:
        precise = mean_average_precision(seen.ranked, pictures.labels)
    return BoxesRecord(
        pictures=len(pictures),
        data_sha256=pictures.sha256,
        boxes=sum(len(found.scores) for found in seen.shown),
        agreement=None,
        agreement_interval=None,
        labelled_boxes=pictures.labelled_boxes,
        map50_95=None if precise is None else precise[0],
        map50=None if precise is None else precise[1],
        drop=None,
    )


def _look(graph: ExportedGraph, pictures: DetectionPictures, level: OptimizationLevel) -> Seen:
    run = runnable(graph, level)
    seen, ranked = [], []
    with console.progress(f"measuring {graph.path.stem}", len(pictures)) as advance:
        for picture in pictures:
            (rows,) = run(picture.pixels[None])
            seen.append(shown(rows))
            if pictures.labels is not None:
                ranked.append(_in_the_picture(detect(rows, *RANKED, multi_label=True), picture))
            advance(1)
    return Seen(shown=tuple(seen), ranked=tuple(ranked) if pictures.labels is not None else None)


def _in_the_picture(found: Detections, picture: DetectionPicture) -> Detections:
    """Return boxes in shares of the picture's sides, cut off at its edges."""
    left, top, width, height = picture.frame
    boxes = (found.boxes - (left, top) * 2) / ((width, height) * 2)
    return found._replace(boxes=boxes.clip(0, 1))


def _share(agreed: Counts) -> tuple[float, tuple[float, float]]:
    """Return the share of all detections that agree, and its 95 % interval; agreeing ones and all, int64 [pictures, 2].

    Detections of one picture stand and fall together, so whole pictures are drawn anew (Efron 1979).
    """
    same, count = agreed.sum(0).tolist()
    generator = np.random.default_rng(0)
    draws = generator.multinomial(len(agreed), np.full(len(agreed), 1 / len(agreed)), DRAWS) @ agreed
    low, high = np.quantile(draws[:, 0] / np.maximum(draws[:, 1], 1), (0.025, 0.975)).tolist()
    return same / count, (low, high)
