"""Accuracy as a gate: what a loss is, where it closes, and what cannot be measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bundler.errors import AccuracyError
from bundler.evaluation.accuracy import require_accuracy
from bundler.evaluation.classification import paired_difference
from bundler.manifest import AccuracyRecord, BoxesRecord, read_manifest, summarize_preprocessing
from tests.command_line import Run


@pytest.mark.parametrize(("lost", "count"), [(3, 60), (7, 100), (1, 3), (29, 100), (57, 1000)])
def test_a_loss_is_the_points_that_are_written(lost: int, count: int) -> None:
    """1 - 0.95 is a little more than 0.05 in floating point, and 100 x 0.07 than 7."""
    before = np.ones(count, dtype=bool)
    after = np.arange(count) >= lost
    drop, interval = paired_difference(before, after)
    record = AccuracyRecord(
        pictures=count, data_sha256="0" * 64, top1=0, top1_interval=(0, 1), top5=None, drop=drop, drop_interval=interval
    )
    assert record.lost_points == round(100 * lost / count, 6)
    require_accuracy({"int8-ptq": record}, max_drop=round(100 * lost / count, 6))


@pytest.mark.parametrize(
    ("precision", "drop", "lost"),
    [(None, None, 4.0), (0.61, 0.015, 1.5), (0.64, -0.01, -1.0)],  # without labels, it is boxes that are lost
)
def test_a_detector_loses_precision_or_boxes(precision: float | None, drop: float | None, lost: float) -> None:
    record = BoxesRecord(
        pictures=10,
        data_sha256="0" * 64,
        boxes=30,
        agreement=0.96,
        agreement_interval=(0.9, 0.99),
        labelled_boxes=None if precision is None else 25,
        map50_95=precision,
        map50=precision,
        drop=drop,
    )
    assert record.lost_points == pytest.approx(lost)
    require_accuracy({"fp32": record.model_copy(update={"agreement": None, "drop": None}), "int8-ptq": record}, max_drop=4)
    with pytest.raises(AccuracyError, match=r"int8-ptq 30 boxes, 96\.0% agree with FP32's") as failure:
        require_accuracy({"int8-ptq": record}, max_drop=lost - 0.01)
    assert "--int8-scope backbone" in failure.value.next_step


PREPARED = (
    "--fit",
    "squash",
    "--channels",
    "bgr",
    "--interpolation",
    "opencv-bilinear",
    "--mean",
    "0.5,0.4,0.3",
    "--std",
    "0.25",
)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of two images."""
    folder = tmp_path_factory.mktemp("labelled")
    generator = np.random.default_rng(3)
    for index in range(20):
        path = folder / f"class{index % 10}" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        coarse.resize((80, 70), Image.Resampling.BICUBIC).save(path)
    return folder


def test_top_1_of_each_mode_is_in_the_manifest_and_a_drop_fails_the_build(
    run: Run,
    small: tuple[str, ...],
    unproved: Path,
    labelled: Path,
    tmp_path: Path,
    weights_of: Callable[[str], Mapping[str, Tensor]],
) -> None:
    torch.save(dict(weights_of("mobilenet_v2")), tmp_path / "mine.pth")
    arguments = ("mobilenet_v2", "--target", str(unproved), *small, "--mode", "int8-ptq", "--data", str(labelled))
    arguments += ("--weights", str(tmp_path / "mine.pth"), "--input-size", "64x96", *PREPARED)
    process = run("bundle", *arguments, "--max-drop", "100", "--output", str(tmp_path / "dist"), code=3)
    assert "Measuring accuracy on 20 images of 10 classes" in process.stderr
    bundle = tmp_path / "dist" / "arm64-qnnpack" / "mobilenet_v2"
    manifest = read_manifest(bundle)
    (mode,) = manifest.modes
    accuracy = mode.accuracy
    assert isinstance(accuracy, AccuracyRecord)
    assert accuracy.top1 in [count / 20 for count in range(21)]
    assert accuracy.top5 is not None
    assert accuracy.top5 >= accuracy.top1
    assert accuracy.drop is not None
    assert not (bundle / "models" / "fp32.onnx").exists()
    # Weights that know nothing of these images are questioned, twice; what they were given is in the manifest.
    (suspicion,) = manifest.model.suspicions
    assert "(chance: 10.0%): check the preprocessing first" in suspicion
    assert process.stderr.count(suspicion) == 2
    assert manifest.model.input.shape == (0, 3, 64, 96)
    prepared = "squashed to 64x96 (opencv-bilinear), BGR, (x/255 - [0.5, 0.4, 0.3]) / [0.25, 0.25, 0.25]"
    assert summarize_preprocessing(manifest.model.preprocessing) == prepared
    shown = run("inspect", str(bundle))
    assert f"preprocessing: {prepared}\n" in shown.stdout
    assert suspicion in shown.stderr


@pytest.mark.parametrize(
    ("model", "options", "code", "words"),
    [
        ("resnet18", ("--max-drop", "1"), 2, "--max-drop requires --data"),
        ("yolov5n", ("--data", "/nonexistent"), 7, "/nonexistent does not exist"),
        ("mobilenet_v2", ("--data", "/nonexistent"), 7, "/nonexistent does not exist"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    run: Run, small: tuple[str, ...], model: str, options: tuple[str, ...], code: int, words: str, tmp_path: Path
) -> None:
    arguments = ("--target", "arm64", *small, *options, "--output", str(tmp_path / "dist"))
    assert words in run("bundle", model, *arguments, code=code).stderr
    assert not (tmp_path / "dist" / "arm64-qnnpack" / model).exists()
