"""Accuracy: counted right, with intervals that hold, and a gate that closes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from bundler.datasets import Preprocessing
from bundler.errors import AccuracyError
from bundler.export.graph import ExportedGraph, ensure_graph
from bundler.labelled_pictures import LabelledPictures, load_validation
from bundler.manifest import AccuracyRecord, read_manifest
from bundler.pipeline.accuracy import (
    _ranks,
    fp32_accuracy,
    lost_points,
    measure_accuracy,
    paired_difference,
    prepare_test,
    require_accuracy,
    wilson,
)

from .conftest import Run


def test_ranks_count_the_classes_that_score_higher_and_equal_ones_before() -> None:
    logits = np.array([[1.0, 3.0, 2.0], [5.0, 5.0, 1.0], [0.0, 0.0, 0.0]], np.float32)
    assert _ranks(logits, np.array([0, 1, 0])).tolist() == [2, 1, 0]
    agreed = [int(rank == 0) for rank in _ranks(logits, logits.argmax(1))]
    assert agreed == [1, 1, 1]  # numpy's argmax is what counts as right


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (796, 1000, 0.7699, 0.8198)],  # R: prop.test(x, n, correct=FALSE)
)
def test_wilsons_interval(right: int, count: int, low: float, high: float) -> None:
    assert wilson(right, count) == pytest.approx((low, high), abs=5e-4)


def test_the_interval_of_a_difference_holds_the_truth_nineteen_times_in_twenty() -> None:
    """Two models that are right 80 % and 77 % of the time, and mostly on the same pictures."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        before = generator.random(500) < 0.8
        after = np.where(before, generator.random(500) < 0.95, generator.random(500) < 0.05)  # 0.76 + 0.01
        _, (low, high) = paired_difference(before, after)
        held += low <= 0.03 <= high
    assert 0.93 < held / 2000 < 0.97


@pytest.mark.parametrize(("lost", "count"), [(3, 60), (7, 100), (1, 3), (29, 100), (57, 1000)])
def test_a_loss_is_the_points_that_are_written(lost: int, count: int) -> None:
    """1 - 0.95 is a little more than 0.05 in floating point, and 100 x 0.07 than 7."""
    before = np.ones(count, dtype=bool)
    after = np.arange(count) >= lost
    drop, interval = paired_difference(before, after)
    record = AccuracyRecord(
        pictures=count, data_sha256="0" * 64, top1=0, top1_interval=(0, 1), top5=None, drop=drop, drop_interval=interval
    )
    assert lost_points(record) == round(100 * lost / count, 6)
    require_accuracy({"int8-ptq": record}, max_drop=round(100 * lost / count, 6))


COLOURS = ("blue", "green", "red")  # in the order of the folders; the channels come as red, green, blue


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> LabelledPictures:
    """Pictures of one colour each, ten of every class; the tenth green one is red."""
    folder = tmp_path_factory.mktemp("coloured")
    for label, colour in enumerate(COLOURS):
        (folder / colour).mkdir()
        for index in range(10):
            shown = 2 if (colour, index) == ("green", 9) else label
            pixel = tuple(100 + index if channel == 2 - shown else 10 for channel in range(3))
            Image.new("RGB", (16, 16), pixel).save(folder / colour / f"{index}.png")
    plain = Preprocessing(resize=16, crop=16, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
    return load_validation(folder, plain, num_classes=3)


def colour_graph(path: Path, weights: list[list[float]]) -> ExportedGraph:
    """Write a graph that scores each class by the picture's mean red, green and blue."""
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["channels"]),
            helper.make_node("MatMul", ["channels", "weights"], ["logits"]),
        ],
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.array(weights, np.float32), "weights")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return ensure_graph(path, opset=13, quantized=False)


def test_modes_are_counted_on_the_same_pictures(coloured: LabelledPictures, tmp_path: Path) -> None:
    fp32 = colour_graph(tmp_path / "fp32.onnx", [[0, 0, 1], [0, 1, 0], [1, 0, 0]])
    int8 = colour_graph(tmp_path / "int8.onnx", [[0, 0, 1], [0, 1, 0], [0, 0, 1]])  # blue passes for red
    test = prepare_test(fp32, coloured, level="all")
    reference, record = fp32_accuracy(test), measure_accuracy(test, int8)
    assert (reference.pictures, reference.top1, reference.drop) == (30, 29 / 30, None)
    assert record.top1 == pytest.approx(19 / 30)
    assert record.drop == pytest.approx(10 / 30)
    assert record.top5 is None
    low, high = record.drop_interval or (0, 0)
    assert 0 < low < 10 / 30 < high
    require_accuracy({"fp32": reference, "int8-ptq": record}, max_drop=33.4)
    with pytest.raises(AccuracyError, match=r"int8-ptq top-1 63\.33% .*\+33\.33 points lost to FP32 .*; 33 points are allowed"):
        require_accuracy({"fp32": reference, "int8-ptq": record}, max_drop=33)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of two pictures."""
    folder = tmp_path_factory.mktemp("labelled")
    generator = np.random.default_rng(3)
    for index in range(20):
        path = folder / f"class{index % 10}" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        coarse.resize((80, 70), Image.Resampling.BICUBIC).save(path)
    return folder


def test_top_1_of_each_mode_is_in_the_manifest_and_a_drop_fails_the_build(
    run: Run, small: tuple[str, ...], unproved: Path, labelled: Path, tmp_path: Path
) -> None:
    arguments = ("mobilenet_v2", "--target", str(unproved), *small, "--mode", "int8-ptq", "--data", str(labelled))
    process = run("bundle", *arguments, "--max-drop", "100", "--output", str(tmp_path / "dist"), code=3)
    assert "Measuring accuracy on 20 pictures of 10 classes" in process.stderr
    bundle = tmp_path / "dist" / "arm64-qnnpack" / "mobilenet_v2"
    (mode,) = read_manifest(bundle).modes
    accuracy = mode.accuracy
    assert accuracy is not None
    assert accuracy.top1 in [count / 20 for count in range(21)]
    assert accuracy.top5 is not None
    assert accuracy.top5 >= accuracy.top1
    assert accuracy.drop is not None
    assert not (bundle / "models" / "fp32.onnx").exists()


@pytest.mark.parametrize(
    ("model", "options", "code", "words"),
    [
        ("resnet18", ("--max-drop", "1"), 2, "--max-drop has no pictures"),
        ("yolov5n", ("--data", "."), 2, "yolov5n is a detector"),
        ("mobilenet_v2", ("--data", "/nonexistent"), 7, "/nonexistent does not exist"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    run: Run, small: tuple[str, ...], model: str, options: tuple[str, ...], code: int, words: str, tmp_path: Path
) -> None:
    arguments = ("--target", "arm64", *small, *options, "--output", str(tmp_path / "dist"))
    assert words in run("bundle", model, *arguments, code=code).stderr
    assert not (tmp_path / "dist" / "arm64-qnnpack" / model).exists()
