"""Evaluate each mode on the user's images, and enforce the maximum accuracy drop of INT8."""

from __future__ import annotations

from collections.abc import Mapping

from bundler import console
from bundler.data.labelled_boxes import DetectionImages
from bundler.data.labelled_images import LabelledImages
from bundler.errors import AccuracyError
from bundler.evaluation.classification import ClassifierTest, prepare_classifier_test
from bundler.evaluation.classification_suspicions import suspect_classifier
from bundler.evaluation.detection import DetectorTest, prepare_detector_test
from bundler.evaluation.detection_suspicions import suspect_detector
from bundler.graphs.exported_graph import ExportedGraph
from bundler.manifest import AccuracyRecord, BoxesRecord, summarize_accuracy
from bundler.models.specs import Mode
from bundler.targets import OptimizationLevel

__all__ = ["AccuracyTest", "prepare_accuracy_test", "require_accuracy", "suspect"]


# Images on which FP32 was measured, so that INT8 can be compared with it: of a classifier, or of a detector.
AccuracyTest = ClassifierTest | DetectorTest


def prepare_accuracy_test(
    fp32: ExportedGraph, images: LabelledImages | DetectionImages, *, level: OptimizationLevel
) -> AccuracyTest:
    """Run the FP32 graph on all images.

    Raises:
        DataError: an image cannot be read, or a detector detects no object in any of them.
    """
    console.step(f"Measuring accuracy on {images}")
    if isinstance(images, DetectionImages):
        return prepare_detector_test(fp32, images, level=level)
    return prepare_classifier_test(fp32, images, level=level)


def suspect(fp32: ExportedGraph, test: AccuracyTest, claims: Mapping[str, float]) -> tuple[str, ...]:
    """Return the likely cause of a low FP32 accuracy; an empty tuple if the accuracy is not suspicious.

    Raises:
        DataError: an image cannot be read.
    """
    if isinstance(test, DetectorTest):
        suspicion = suspect_detector(fp32, test.pictures, test.seen, test.fp32, level=test.level, claims=claims)
    else:
        suspicion = suspect_classifier(fp32, test, claims)
    if suspicion is None:
        return ()
    console.warn(suspicion)
    return (suspicion,)


def require_accuracy(records: Mapping[Mode, AccuracyRecord | BoxesRecord], max_drop: float) -> None:
    """Require that no INT8 mode loses more than `max_drop` percentage points.

    Raises:
        AccuracyError: a mode loses more; the message has the figures of all such modes.
    """
    lost = [
        mode for mode, record in sorted(records.items()) if record.lost_points is not None and record.lost_points > max_drop
    ]
    if lost:
        detector = any(isinstance(records[mode], BoxesRecord) for mode in lost)
        raise AccuracyError(
            "; ".join(f"{mode} {summarize_accuracy(records[mode])}" for mode in lost) + f"; {max_drop:g} points are allowed",
            next_step="Calibrate with more images like those of the device (--calibration DIR, --calibration-images N), or "
            + ("quantize less of it: --int8-scope backbone." if detector else "train for it: --mode int8-qat."),
        )
