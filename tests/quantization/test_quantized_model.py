"""int8-qat from the command line: interrupted by Ctrl-C, resumed, recorded, and its checkpoint removed."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundler.manifest import AccuracyRecord, BoxesRecord, read_manifest
from tests.command_line import BUNDLER, NOWHERE, Run

CLASSES = 3


@pytest.fixture
def divided(tmp_path: Path) -> Path:
    """Pictures in train/ and val/ whose classes are their colours."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4)):
        for index in range(CLASSES):
            folder = tmp_path / "data" / part / f"class{index}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 120, (64, 64, 3))
                pixels[..., index] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "data"


@pytest.fixture
def arguments(divided: Path, unproved: Path, tmp_path: Path) -> list[str]:
    options = ["--weights", "random", "--input-size", "64", "--num-classes", str(CLASSES), "--calibration-images", "4"]
    training = ["--mode", "int8-qat", "--data", str(divided), "--epochs", "3", "--learning-rate", "0.01"]
    return ["bundle", "resnet18", "--target", str(unproved), *options, *training, "--output", str(tmp_path / "dist")]


def test_stopped_by_ctrl_c_it_goes_on_and_leaves_a_record_and_no_checkpoint(
    run: Run, arguments: list[str], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    environment = {**os.environ, "DOCKER_HOST": NOWHERE, "XDG_CACHE_HOME": str(cache)}
    process = subprocess.Popen([BUNDLER, *arguments], env=environment, text=True, stderr=subprocess.PIPE)
    assert process.stderr is not None
    for line in process.stderr:
        if "epoch 1:" in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.communicate(timeout=120)[1]
    assert process.returncode == 130, rest
    (checkpoint,) = cache.rglob("*.pt")
    assert not (tmp_path / "dist" / "arm64-qnnpack" / "resnet18").exists()

    told = run(*arguments, code=3, XDG_CACHE_HOME=str(cache)).stderr
    assert f"resuming from {checkpoint}" in told
    assert "epoch 1:" not in told
    assert not checkpoint.exists()
    (mode,) = read_manifest(tmp_path / "dist" / "arm64-qnnpack" / "resnet18").modes
    assert mode.quantization is not None
    assert isinstance(mode.accuracy, AccuracyRecord)
    assert mode.quantization.calibration is None
    training = mode.quantization.training
    assert training is not None
    assert (training.pictures, training.validation_pictures, training.epochs, len(training.scores)) == (24, 12, 3, 3)
    best = max(training.score_before, *training.scores)
    assert [training.score_before, *training.scores][training.best_epoch] == best
    # What training simulated is what ONNX Runtime computes, up to rounding; three steps leave most pictures near an edge.
    # Measured in seven trainings of other lengths and rates: 0 or 1 of the 12 pictures.
    assert round(12 * abs(mode.accuracy.top1 - best)) <= 3


def test_a_training_that_runs_away_is_an_error_with_its_own_code(run: Run, arguments: list[str], tmp_path: Path) -> None:
    arguments[arguments.index("--learning-rate") + 1] = "1e30"
    message = run(*arguments, code=14, XDG_CACHE_HOME=str(tmp_path / "cache")).stderr
    assert "lower --learning-rate" in message


def test_a_detector_learns_from_fp32_on_pictures_without_labels(
    run: Run, small: tuple[str, ...], unproved: Path, tmp_path: Path
) -> None:
    generator = np.random.default_rng(5)
    for index in range(20):
        coarse = Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        (tmp_path / "data").mkdir(exist_ok=True)
        coarse.resize((96, 72), Image.Resampling.BICUBIC).save(tmp_path / "data" / f"{index}.png")
    training = ("--mode", "int8-qat", "--data", str(tmp_path / "data"), "--epochs", "2")
    output = ("--output", str(tmp_path / "dist"))
    told = run("bundle", "yolov5n", "--target", str(unproved), *small, *training, *output, code=3).stderr
    assert "epoch 2: boxes as FP32's" in told
    (mode,) = read_manifest(tmp_path / "dist" / "arm64-qnnpack" / "yolov5n").modes
    assert mode.quantization is not None
    assert mode.scope == "backbone"
    training_record = mode.quantization.training
    assert training_record is not None
    assert (training_record.measure, training_record.pictures, training_record.validation_pictures) == ("boxes", 16, 4)
    assert (training_record.batch_size, training_record.statistics_epochs) == (8, 0)
    assert len(training_record.scores) == 2
    assert isinstance(mode.accuracy, BoxesRecord)
    assert mode.accuracy.agreement is not None
    # Training simulated what ONNX Runtime computes, up to rounding; random weights see many boxes that are hardly sure.
    # Measured: 0.01.
    best = max(training_record.score_before, *training_record.scores)
    assert abs(mode.accuracy.agreement - best) < 0.05
