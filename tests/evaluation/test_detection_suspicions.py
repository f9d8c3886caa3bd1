"""A detector that sees nothing, or sees it elsewhere or as something else than it is labelled."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundler.data.labelled_boxes import load_detection_images
from bundler.errors import DataError
from bundler.evaluation.accuracy import suspect
from bundler.evaluation.detection import prepare_detector_test
from bundler.graphs.exported_graph import ExportedGraph
from tests.evaluation.test_detection import LABELS, LEFT, PLAIN, RIGHT, detector, write_pictures

TO_255 = "--mean 0 --std 0.00392156863"


def faint(box: tuple[float, ...], confidence: float) -> tuple[float, ...]:
    """Return a box that has this confidence where the brightest value of an input is 1."""
    return (*box[:4], confidence, *box[5:])


def found(tmp_path: Path, graph: ExportedGraph, labels: str | None, claims: dict[str, float] | None = None) -> tuple[str, ...]:
    pictures = load_detection_images(write_pictures(tmp_path / "data", labels=labels), PLAIN, num_classes=2)
    return suspect(graph, prepare_detector_test(graph, pictures, level="all"), claims or {})


def test_where_nothing_is_seen_other_preprocessing_is_the_next_step(tmp_path: Path) -> None:
    graph = detector(tmp_path / "fp32.onnx", faint(LEFT, 0.8 / 255), faint(RIGHT, 0.8 / 255))
    with pytest.raises(DataError, match="the FP32 model detects no object") as caught:
        found(tmp_path, graph, None)
    assert f"Check the preprocessing first: with `{TO_255}`, 8 boxes are detected in 4 images." in caught.value.next_step


def test_where_nothing_helps_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the FP32 model detects no object") as caught:
        found(tmp_path, detector(tmp_path / "fp32.onnx", faint(LEFT, 1e-6)), None)
    assert "none of 10 tried variants gives a detection" in caught.value.next_step
    assert "trained weights" in caught.value.next_step


def test_a_poor_map_that_other_preprocessing_mends(tmp_path: Path) -> None:
    elsewhere = (4, 28, 4, 4, 0.9, 1, 1)
    graph = detector(tmp_path / "fp32.onnx", elsewhere, faint(LEFT, 0.0001), faint(RIGHT, 0.0001))
    (text,) = found(tmp_path, graph, LABELS)
    assert text.startswith(
        "FP32 mAP50 is 0.0%: check the preprocessing first. On 4 images it is 0.0% with the current preprocessing"
    )
    assert f"50.0% with `{TO_255}`" in text


def test_a_poor_map_that_nothing_mends(tmp_path: Path) -> None:
    (text,) = found(tmp_path, detector(tmp_path / "fp32.onnx", (4, 28, 4, 4, 0.9, 1, 1)), LABELS, {"best_fitness": 0.5})
    assert "mAP50 is 0.0%: check the preprocessing first (--mean" in text
    assert "The checkpoint states 50.0%" in text


def test_classes_in_another_order_are_named(tmp_path: Path) -> None:
    swapped = LABELS.replace("\n1 ", "\n0 ").replace("0 0.25", "1 0.25", 1)
    (text,) = found(tmp_path, detector(tmp_path / "fp32.onnx", LEFT, RIGHT), swapped)
    assert "detects 8 of 8 labelled boxes, but with the classes in another order: it predicts class 0 as 1, 1 as 0" in text


def test_a_good_map_and_no_labels_are_not_suspicious(tmp_path: Path) -> None:
    graph = detector(tmp_path / "fp32.onnx", LEFT, RIGHT)
    assert found(tmp_path, graph, LABELS) == ()
    (tmp_path / "more").mkdir()
    assert found(tmp_path / "more", graph, None) == ()
