"""Accuracy as a gate: each mode is measured on pictures of the user's, and INT8 may lose no more than is allowed."""

from __future__ import annotations

from collections.abc import Mapping

from bundler import console
from bundler.data.labelled_boxes import DetectionPictures
from bundler.data.labelled_images import LabelledPictures
from bundler.errors import AccuracyError
from bundler.evaluation.classification import Top1Test, prepare_top1
from bundler.evaluation.classification_suspicions import suspect_top1
from bundler.evaluation.detection import BoxesTest, prepare_boxes
from bundler.evaluation.detection_suspicions import suspect_boxes
from bundler.graphs.exported_graph import ExportedGraph
from bundler.manifest import AccuracyRecord, BoxesRecord, summarize_accuracy
from bundler.models.specs import Mode
from bundler.targets import OptimizationLevel

__all__ = ["AccuracyTest", "prepare_test", "require_accuracy", "suspect"]


# Images on which FP32 was measured, so that INT8 can be compared with it: of a classifier, or of a detector.
AccuracyTest = Top1Test | BoxesTest


def prepare_test(
    fp32: ExportedGraph, pictures: LabelledPictures | DetectionPictures, *, level: OptimizationLevel
) -> AccuracyTest:
    """Run every picture through the float graph, so that others can be compared with it.

    Raises:
        DataError: a picture cannot be read, or a detector sees nothing in any of them.
    """
    console.step(f"Measuring accuracy on {pictures}")
    if isinstance(pictures, DetectionPictures):
        return prepare_boxes(fp32, pictures, level=level)
    return prepare_top1(fp32, pictures, level=level)


def suspect(fp32: ExportedGraph, test: AccuracyTest, claims: Mapping[str, float]) -> tuple[str, ...]:
    """Return what FP32's accuracy is probably due to where it is poor; nothing where there is nothing to suspect.

    Raises:
        DataError: a picture cannot be read.
    """
    if isinstance(test, BoxesTest):
        suspicion = suspect_boxes(fp32, test.pictures, test.seen, test.fp32, level=test.level, claims=claims)
    else:
        suspicion = suspect_top1(fp32, test, claims)
    if suspicion is None:
        return ()
    console.warn(suspicion)
    return (suspicion,)


def require_accuracy(records: Mapping[Mode, AccuracyRecord | BoxesRecord], max_drop: float) -> None:
    """Refuse INT8 modes that lost more than `max_drop` points.

    Raises:
        AccuracyError: with each such mode's figures.
    """
    lost = [
        mode for mode, record in sorted(records.items()) if record.lost_points is not None and record.lost_points > max_drop
    ]
    if lost:
        detector = any(isinstance(records[mode], BoxesRecord) for mode in lost)
        raise AccuracyError(
            "; ".join(f"{mode} {summarize_accuracy(records[mode])}" for mode in lost) + f"; {max_drop:g} points are allowed",
            next_step="Calibrate with more pictures like those of the device (--calibration DIR, --calibration-pictures N), or "
            + ("quantize less of it: --int8-scope backbone." if detector else "train for it: --mode int8-qat."),
        )
