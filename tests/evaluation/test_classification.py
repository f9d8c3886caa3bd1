"""Top-1: counted right, with intervals that hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from bundler.data.labelled_images import LabelledImages, load_validation
from bundler.data.preprocessing import Preprocessing
from bundler.errors import AccuracyError
from bundler.evaluation.accuracy import require_accuracy
from bundler.evaluation.classification import label_ranks, paired_difference, prepare_classifier_test, wilson
from bundler.graphs.exported_graph import ExportedGraph, save_graph


def test_ranks_count_the_classes_that_score_higher_and_equal_ones_before() -> None:
    logits = np.array([[1.0, 3.0, 2.0], [5.0, 5.0, 1.0], [0.0, 0.0, 0.0]], np.float32)
    assert label_ranks(logits, np.array([0, 1, 0])).tolist() == [2, 1, 0]
    agreed = [int(rank == 0) for rank in label_ranks(logits, logits.argmax(1))]
    assert agreed == [1, 1, 1]  # numpy's argmax is what counts as right


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (796, 1000, 0.7699, 0.8198)],  # R: prop.test(x, n, correct=FALSE)
)
def test_wilsons_interval(right: int, count: int, low: float, high: float) -> None:
    assert wilson(right, count) == pytest.approx((low, high), abs=5e-4)


def test_the_interval_of_a_difference_holds_the_truth_nineteen_times_in_twenty() -> None:
    """Two models that are right 80 % and 77 % of the time, and mostly on the same images."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        before = generator.random(500) < 0.8
        after = np.where(before, generator.random(500) < 0.95, generator.random(500) < 0.05)  # 0.76 + 0.01
        _, (low, high) = paired_difference(before, after)
        held += low <= 0.03 <= high
    assert 0.93 < held / 2000 < 0.97


COLOURS = ("blue", "green", "red")  # in the order of the folders; the channels come as red, green, blue


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    """Images of one colour each, ten of every class; the tenth green one is red."""
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
    """Write a graph that scores each class by the image's mean red, green and blue."""
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
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return save_graph(ir.from_proto(model), path, opset=13, quantized=False)


def test_modes_are_counted_on_the_same_images(coloured: LabelledImages, tmp_path: Path) -> None:
    fp32 = colour_graph(tmp_path / "fp32.onnx", [[0, 0, 1], [0, 1, 0], [1, 0, 0]])
    int8 = colour_graph(tmp_path / "int8.onnx", [[0, 0, 1], [0, 1, 0], [0, 0, 1]])  # blue passes for red
    test = prepare_classifier_test(fp32, coloured, level="all")
    reference, record = test.fp32, test.measure(int8)
    assert (reference.pictures, reference.top1, reference.drop) == (30, 29 / 30, None)
    assert record.top1 == pytest.approx(19 / 30)
    assert record.drop == pytest.approx(10 / 30)
    assert record.top5 is None
    low, high = record.drop_interval or (0, 0)
    assert 0 < low < 10 / 30 < high
    require_accuracy({"fp32": reference, "int8-ptq": record}, max_drop=33.4)
    with pytest.raises(AccuracyError, match=r"int8-ptq top-1 63\.33% .*\+33\.33 points lost to FP32 .*; 33 points are allowed"):
        require_accuracy({"fp32": reference, "int8-ptq": record}, max_drop=33)
