"""A detector's accuracy: boxes that agree with FP32's, precision where labels are given, and a gate that closes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from bundler.data.labelled_boxes import load_detection_images
from bundler.data.preprocessing import Preprocessing
from bundler.errors import DataError
from bundler.evaluation.detection import agreement_share, prepare_detector_test
from bundler.graphs.exported_graph import ExportedGraph, save_graph
from bundler.manifest import BoxesRecord, read_manifest, summarize_accuracy
from tests.command_line import Run

SIZE = 32
PLAIN = Preprocessing(
    resize=SIZE, crop=SIZE, interpolation="bilinear", fit="letterbox", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)


def detector(path: Path, *boxes: tuple[float, ...]) -> ExportedGraph:
    """Write a graph that sees the same boxes, two classes each, in every image; as surely as the image is bright."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["image"], ["brightest"], axes=[1, 2, 3], keepdims=1),
            helper.make_node("Squeeze", ["brightest", "last"], ["brightness"]),
            helper.make_node("Mul", ["brightness", "mask"], ["lights"]),
            helper.make_node("Add", ["lights", "rest"], ["factors"]),
            helper.make_node("Mul", ["factors", "boxes"], ["detections"]),
        ],
        "boxes",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("detections", TensorProto.FLOAT, ["batch", len(boxes), 7])],
        [
            numpy_helper.from_array(np.array([3], np.int64), "last"),
            numpy_helper.from_array(np.array([0, 0, 0, 0, 1, 0, 0], np.float32), "mask"),
            numpy_helper.from_array(np.array([1, 1, 1, 1, 0, 1, 1], np.float32), "rest"),
            numpy_helper.from_array(np.array(boxes, np.float32)[None], "boxes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return save_graph(ir.from_proto(model), path, opset=13, quantized=False, task="detection")


LEFT, RIGHT = (8, 16, 8, 8, 0.9, 1, 0), (24, 16, 8, 8, 0.9, 0, 1)  # in the input's pixels
# The same, in shares of an image of 32 x 16 pixels, which lies between the rows 8 and 24 of the input.
LABELS = "0 0.25 0.5 0.25 0.5\n1 0.75 0.5 0.25 0.5\n"


def write_pictures(folder: Path, *, count: int = 4, labels: str | None = None) -> Path:
    folder.mkdir()
    for index in range(count):
        Image.new("RGB", (SIZE, SIZE // 2), "white").save(folder / f"{index}.png")
        if labels is not None:
            (folder / f"{index}.txt").write_text(labels)
    return folder


def measured(tmp_path: Path, fp32: ExportedGraph, int8: ExportedGraph, labels: str | None) -> tuple[BoxesRecord, BoxesRecord]:
    pictures = load_detection_images(write_pictures(tmp_path / "data", labels=labels), PLAIN, num_classes=2)
    test = prepare_detector_test(fp32, pictures, level="all")
    return test.fp32, test.measure(int8)


def test_labels_and_detections_meet_in_the_letterbox(tmp_path: Path) -> None:
    fp32 = detector(tmp_path / "fp32.onnx", LEFT, RIGHT)
    reference, record = measured(tmp_path, fp32, fp32, LABELS)
    assert (reference.map50_95, reference.map50, reference.labelled_boxes, reference.boxes) == (1, 1, 8, 8)
    assert (reference.agreement, reference.drop, reference.lost_points) == (None, None, None)
    assert (record.agreement, record.agreement_interval, record.drop, record.lost_points) == (1, (1, 1), 0, 0)


def test_a_class_that_int8_lost_is_half_of_the_precision(tmp_path: Path) -> None:
    fp32, int8 = detector(tmp_path / "fp32.onnx", LEFT, RIGHT), detector(tmp_path / "int8.onnx", LEFT)
    _, record = measured(tmp_path, fp32, int8, LABELS)
    assert record.map50_95 == pytest.approx(0.5)
    assert record.lost_points == pytest.approx(50)
    assert record.agreement == pytest.approx(2 / 3)  # of 8 + 4 boxes, 8 have a partner
    assert "4 boxes, 66.7% agree with FP32's (66.7% to 66.7%), mAP50-95 50.00%" in summarize_accuracy(record)
    assert "+50.00 points of mAP50-95 lost to FP32" in summarize_accuracy(record)


def test_without_labels_the_boxes_that_do_not_agree_are_lost(tmp_path: Path) -> None:
    fp32, int8 = detector(tmp_path / "fp32.onnx", LEFT, RIGHT), detector(tmp_path / "int8.onnx", LEFT)
    _, record = measured(tmp_path, fp32, int8, None)
    assert (record.map50_95, record.labelled_boxes, record.drop) == (None, None, None)
    assert record.lost_points == pytest.approx(100 / 3, abs=1e-5)


def test_where_fp32_sees_nothing_nothing_is_measured(tmp_path: Path) -> None:
    blind = detector(tmp_path / "fp32.onnx", (8, 16, 8, 8, 0.2, 1, 0))
    with pytest.raises(DataError, match=r"the FP32 model detects no object above confidence 0\.25 in the 4 images"):
        measured(tmp_path, blind, blind, LABELS)


def test_the_interval_of_the_agreement_holds_the_truth_nineteen_times_in_twenty() -> None:
    """Detections of one image stand and fall together: three in ten images agree by half only, the others wholly."""
    generator = np.random.default_rng(0)
    truth, held = 0.7 + 0.3 * 0.5, 0
    for _ in range(200):
        counts = np.full(150, 8)
        agreed = np.where(generator.random(150) < 0.3, 4, 8)
        _, (low, high) = agreement_share(np.stack([agreed, counts], 1))
        held += low <= truth <= high
    assert 0.9 < held / 200 < 0.99


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images with a labelled rectangle each."""
    folder = tmp_path_factory.mktemp("street")
    generator = np.random.default_rng(5)
    for index in range(6):
        picture = Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize(
            (96, 72), Image.Resampling.BICUBIC
        )
        picture.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"{index % 4} 0.5 0.5 0.25 0.4\n")
    return folder


def test_a_detectors_accuracy_is_in_the_manifest(
    run: Run, small: tuple[str, ...], unproved: Path, street: Path, tmp_path: Path
) -> None:
    arguments = ("yolov5n", "--target", str(unproved), *small, "--mode", "int8-ptq", "--data", str(street))
    process = run("bundle", *arguments, "--max-drop", "100", "--output", str(tmp_path / "dist"), code=3)
    assert "Measuring accuracy on 6 images with 6 labelled boxes" in process.stderr
    (mode,) = read_manifest(tmp_path / "dist" / "arm64-qnnpack" / "yolov5n").modes
    assert isinstance(mode.accuracy, BoxesRecord)
    assert mode.accuracy.agreement is not None
    assert 0 < mode.accuracy.agreement < 1
    assert mode.accuracy.drop is not None
    assert f"int8-ptq: {summarize_accuracy(mode.accuracy)}" in process.stdout
