"""Boxes: whether a detector still sees in INT8 what it sees in FP32, and what of that is right where labels are given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bundler.data.labelled_boxes import DetectionPictures
from bundler.device.detections import agreeing
from bundler.errors import DataError
from bundler.evaluation.average_precision import mean_average_precision
from bundler.evaluation.detection_suspicions import seen_otherwise
from bundler.evaluation.seen import Seen, look
from bundler.graphs.exported_graph import ExportedGraph
from bundler.manifest import BoxesRecord
from bundler.targets import OptimizationLevel

__all__ = ["BoxesTest", "prepare_boxes"]

DRAWS = 2000  # of all pictures, for the interval

Counts = NDArray[np.int64]


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
        seen = look(graph, self.pictures, self.level)
        record = _record(self.pictures, seen)
        pairs = zip(seen.shown, self.seen.shown, strict=True)
        agreed = np.array([agreeing(own, other) for own, other in pairs])
        share, interval = _share(agreed)
        drop = None
        if record.map50_95 is not None and self.fp32.map50_95 is not None:
            drop = self.fp32.map50_95 - record.map50_95
        return record.changed(agreement=share, agreement_interval=interval, drop=drop)


def prepare_boxes(fp32: ExportedGraph, pictures: DetectionPictures, *, level: OptimizationLevel) -> BoxesTest:
    """Look at every picture with the float graph.

    Raises:
        DataError: a picture cannot be read, or nothing is seen in any of them, so that nothing could be compared.
    """
    seen = look(fp32, pictures, level)
    if not any(len(found.scores) for found in seen.shown):
        checked = seen_otherwise(fp32, pictures, level)
        raise DataError(
            f"FP32 sees nothing in the {len(pictures)} pictures of {pictures.folder}: no score is high enough",
            next_step=f"{checked} Otherwise give pictures of what the network was trained to find, or trained weights"
            " (--weights FILE).",
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


def _share(agreed: Counts) -> tuple[float, tuple[float, float]]:
    """Return the share of all detections that agree, and its 95 % interval; agreeing ones and all, int64 [pictures, 2].

    Detections of one picture stand and fall together, so whole pictures are drawn anew (Efron 1979).
    """
    same, count = agreed.sum(0).tolist()
    generator = np.random.default_rng(0)
    draws = generator.multinomial(len(agreed), np.full(len(agreed), 1 / len(agreed)), DRAWS) @ agreed
    low, high = np.quantile(draws[:, 0] / np.maximum(draws[:, 1], 1), (0.025, 0.975)).tolist()
    return same / count, (low, high)
