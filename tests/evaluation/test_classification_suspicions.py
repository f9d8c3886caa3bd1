"""A poor top-1: other preprocessing and another order of the classes are found, and named only where they are better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from bundler.data.labelled_images import LabelledImages, load_validation
from bundler.data.preprocessing import Preprocessing
from bundler.evaluation import other_preprocessing
from bundler.evaluation.classification import prepare_classifier_test
from bundler.evaluation.classification_suspicions import suspect_classifier
from bundler.graphs.exported_graph import ExportedGraph, save_graph

SIZE = 16
IMAGENET = Preprocessing(resize=SIZE, crop=SIZE, interpolation="bilinear")
PLAIN = replace(IMAGENET, mean=(0.0,) * 3, std=(1.0,) * 3)
COLOURS = ((0.2, 0.2, 0.2), (0.4, 0.4, 0.4), (0.6, 0.6, 0.6), (0.8, 0.8, 0.8))
HUES = ((0.2, 0.2, 0.8), (0.8, 0.2, 0.2), (0.5, 0.2, 0.5), (0.9, 0.9, 0.9))  # of which two change places with channels


def nearest_colour(path: Path, colours: Sequence[tuple[float, float, float]] = COLOURS) -> ExportedGraph:
    """Write a graph that was "trained" on pixels / 255: the class is the colour nearest to an input's mean."""
    weights = 2 * np.array(colours, np.float32).T
    bias = -np.square(np.array(colours, np.float32)).sum(1)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["channels"]),
            helper.make_node("Gemm", ["channels", "weights", "bias"], ["logits"]),
        ],
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(colours)])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return save_graph(ir.from_proto(model), path, opset=13, quantized=False)


def write_pictures(
    folder: Path, *, names: Sequence[str] = "abcd", colours: Sequence[tuple[float, ...]] = COLOURS, wide: bool = False
) -> Path:
    """Write ten images of each colour into a folder of each name; wide ones have it at their edges alone."""
    generator = np.random.default_rng(0)
    for name, colour in zip(names, colours, strict=True):
        (folder / name).mkdir(parents=True)
        for index in range(10):
            pixels = np.array(colour) + generator.normal(0, 0.02, (SIZE, 4 * SIZE if wide else SIZE, 3))
            if wide:
                pixels[:, SIZE + 4 : 3 * SIZE - 4] = 0.5
            Image.fromarray((pixels * 255).clip(0, 255).astype(np.uint8)).save(folder / name / f"{index}.png")
    return folder


def suspicion(
    tmp_path: Path, pictures: LabelledImages, graph: ExportedGraph | None = None, claims: dict[str, float] | None = None
) -> str | None:
    graph = graph or nearest_colour(tmp_path / "fp32.onnx")
    return suspect_classifier(graph, prepare_classifier_test(graph, pictures, level="all"), claims or {})


@pytest.mark.parametrize(
    ("preprocessing", "options"),
    [
        (IMAGENET, "`--mean 0 --std 1`"),
        (replace(PLAIN, mean=(0.5,) * 3, std=(0.5,) * 3), "`--mean 0 --std 1`"),
        (replace(PLAIN, std=(1 / 255,) * 3), "`--mean 0 --std 1`"),
        (replace(PLAIN, channels="bgr"), "`--channels rgb`"),
        (replace(IMAGENET, channels="bgr"), "`--mean 0 --std 1 --channels rgb`"),
    ],
)
def test_other_values_and_channels_are_found(tmp_path: Path, preprocessing: Preprocessing, options: str) -> None:
    colours = HUES if preprocessing.channels == "bgr" else COLOURS
    folder = write_pictures(tmp_path / "val", colours=colours)
    graph = nearest_colour(tmp_path / "fp32.onnx", colours)
    text = suspicion(tmp_path, load_validation(folder, preprocessing, num_classes=4), graph)
    assert text is not None
    assert "on val (chance: 25.0%): check the preprocessing first" in text
    assert f"100.0% with {options}" in text


def test_images_that_were_squashed_are_found(tmp_path: Path) -> None:
    pictures = load_validation(write_pictures(tmp_path / "val", wide=True), PLAIN, num_classes=4)
    colours = [tuple(0.625 * value + 0.375 * 0.5 for value in colour) for colour in COLOURS]
    text = suspicion(tmp_path, pictures, nearest_colour(tmp_path / "fp32.onnx", colours))  # type: ignore[arg-type]
    assert text is not None
    assert f"100.0% with `--fit squash --input-size {SIZE}`" in text


def test_folders_that_sort_otherwise_are_found(tmp_path: Path) -> None:
    pictures = load_validation(write_pictures(tmp_path / "val", names=["dog", "cat", "eel", "ant"]), PLAIN, num_classes=4)
    text = suspicion(tmp_path, pictures)
    assert text is not None
    assert "100.0% with the classes in another order: it predicts ant as 3, dog as 0" in text.replace("cat as 1, ", "")
    assert "have the order of the training: 0 dog, 1 cat, 2 eel, 3 ant" in text


def test_what_nothing_mends_is_said_to_be_chance(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "val")
    generator = np.random.default_rng(1)
    for path in sorted(folder.rglob("*.png")):
        Image.fromarray(generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(path)
    text = suspicion(tmp_path, load_validation(folder, PLAIN, num_classes=4))
    assert text is not None
    assert "(chance: 25.0%): check the preprocessing first: --mean, --std, --channels, --fit and --resize" in text
    assert "None of 12 tried variants of the preprocessing is significantly better" in text


def test_a_good_accuracy_is_not_suspicious(tmp_path: Path) -> None:
    pictures = load_validation(write_pictures(tmp_path / "val"), PLAIN, num_classes=4)
    assert suspicion(tmp_path, pictures) is None
    assert suspicion(tmp_path, pictures, claims={"best_acc": 1.0}) is None


def test_an_accuracy_below_what_the_checkpoint_says_is_suspicious(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "val")
    for index in range(7):  # too few for anything else to be significant
        Image.new("RGB", (SIZE, SIZE), "black").save(folder / "d" / f"{index}.png")
    pictures = load_validation(folder, PLAIN, num_classes=4)
    assert suspicion(tmp_path, pictures, claims={"best_acc1": 0.9}) is None
    text = suspicion(tmp_path, pictures, claims={"best_acc1": 0.985})
    assert text is not None
    assert "FP32 top-1 is 82.50% on val" in text
    assert "the checkpoint states 98.5% (best_acc1): check the preprocessing first" in text


def test_no_more_is_tried_when_the_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_preprocessing, "SECONDS", 0.0)
    faint = replace(PLAIN, std=(100.0,) * 3)
    text = suspicion(tmp_path, load_validation(write_pictures(tmp_path / "val"), faint, num_classes=4))
    assert text is not None
    assert "None of 0 tried variants of the preprocessing" in text
