"""Agreement of a detector's INT8 boxes with its FP32 boxes, and average precision if there are labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bundler.data.labelled_boxes import DetectionImages
from bundler.device.detections import agreeing
from bundler.errors import DataError
from bundler.evaluation.average_precision import mean_average_precision
from bundler.evaluation.detection_suspicions import next_step_for_no_detection
from bundler.evaluation.detector_outputs import SHOWN, DetectorOutputs, run_detector
from bundler.graphs.exported_graph import ExportedGraph
from bundler.manifest import BoxesRecord
from bundler.targets import OptimizationLevel
from bundler.visible import visible

__all__ = ["DetectorTest", "agreement_share", "prepare_detector_test"]

DRAWS = 2000  # bootstrap samples for the interval

Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class DetectorTest:
    """Evaluation images, the detections of FP32 in them, and its accuracy."""

    pictures: DetectionImages
    level: OptimizationLevel
    seen: DetectorOutputs
    fp32: BoxesRecord

    def measure(self, graph: ExportedGraph) -> BoxesRecord:
        """Return the agreement of an INT8 graph with FP32, its average precision, and the drop from FP32.

        Raises:
            DataError: an image cannot be read.
        """
        seen = run_detector(graph, self.pictures, self.level)
        record = _record(self.pictures, seen)
        pairs = zip(seen.shown, self.seen.shown, strict=True)
        agreed = np.array([agreeing(own, other) for own, other in pairs])
        share, interval = agreement_share(agreed)
        drop = None
        if record.map50_95 is not None and self.fp32.map50_95 is not None:
            drop = self.fp32.map50_95 - record.map50_95
        return record.changed(agreement=share, agreement_interval=interval, drop=drop)


def prepare_detector_test(fp32: ExportedGraph, images: DetectionImages, *, level: OptimizationLevel) -> DetectorTest:
    """Run the FP32 graph on all images.

    Raises:
        DataError: an image cannot be read, or no object is detected in any of them, so that nothing can be compared.
    """
    seen = run_detector(fp32, images, level)
    if not any(len(found.scores) for found in seen.shown):
        checked = next_step_for_no_detection(fp32, images, level)
        raise DataError(
            f"the FP32 model detects no object above confidence {SHOWN:g} in the {len(images)} images of"
            f" {visible(images.folder)}",
            next_step=f"{checked} Otherwise pass images with objects of the trained classes, or trained weights.",
        )
    return DetectorTest(pictures=images, level=level, seen=seen, fp32=_record(images, seen))


def _record(images: DetectionImages, seen: DetectorOutputs) -> BoxesRecord:
    """Return the record of a graph without a comparison with FP32."""
    precise = None
    if seen.ranked is not None and images.labels is not None:
        precise = mean_average_precision(seen.ranked, images.labels)
    return BoxesRecord(
        pictures=len(images),
        data_sha256=images.sha256,
        boxes=sum(len(found.scores) for found in seen.shown),
        agreement=None,
        agreement_interval=None,
        labelled_boxes=images.labelled_boxes,
        map50_95=None if precise is None else precise[0],
        map50=None if precise is None else precise[1],
        drop=None,
    )


def agreement_share(agreed: Counts) -> tuple[float, tuple[float, float]]:
    """Return the share of detections that agree, and its 95 % interval.

    `agreed` has the numbers of agreeing and of all detections, int64 [images, 2]. Detections in one image are not independent,
    so that the bootstrap (Efron 1979) samples whole images.
    """
    same, count = agreed.sum(0).tolist()
    generator = np.random.default_rng(0)
    draws = generator.multinomial(len(agreed), np.full(len(agreed), 1 / len(agreed)), DRAWS) @ agreed
    low, high = np.quantile(draws[:, 0] / np.maximum(draws[:, 1], 1), (0.025, 0.975)).tolist()
    return same / count, (low, high)
