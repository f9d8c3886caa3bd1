"""The plan: every choice made, and the impossible refused with the reason, before anything is read or written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundler.errors import BundlerError, ModeUnavailableError, UnknownModelError, UnknownTargetError
from bundler.plan import BuildJob, CalibrationRequest, plan_build
from bundler.recipe import CLASSIFIERS, DETECTORS, TrainingRecipe


def plan(model: str = "resnet50", target: str = "arm64", **changes: Any) -> BuildJob:
    choices: dict[str, Any] = {
        "modes": (),
        "int8_scope": None,
        "weights": "auto",
        "num_classes": None,
        "input_size": None,
        "calibration": CalibrationRequest(folder=None, pictures=8, batch_size=4),
        "data": None,
        "max_drop": None,
        "epochs": 8,
        "learning_rate": None,
        "base_image": None,
        "output": Path("dist"),
        "seed": 0,
    }
    return plan_build(model, target, **{**choices, **changes})


def test_names_and_places() -> None:
    job = plan()
    assert job.identifier == "resnet50-arm64-qnnpack"
    assert job.image_reference == "resnet50:arm64-qnnpack"
    assert job.directory == Path("dist/arm64-qnnpack/resnet50")
    assert job.archive == Path("dist/arm64-qnnpack/resnet50.tar.gz")
    assert job.modes == ("fp32", "int8-ptq")


def test_the_published_preprocessing_unless_a_size_is_given() -> None:
    assert (plan().preprocessing.resize, plan().preprocessing.crop) == (232, 224)
    sized = plan(input_size=64).preprocessing
    assert (sized.resize, sized.crop) == (64, 64)


@pytest.mark.parametrize(("model", "usual"), [("resnet50", CLASSIFIERS), ("yolov5n", DETECTORS)])
def test_a_detector_is_trained_otherwise_than_a_classifier(model: str, usual: TrainingRecipe) -> None:
    asked: dict[str, Any] = {"model": model, "modes": ("int8-qat",), "data": Path()}
    assert plan(**asked).recipe == usual
    assert plan(**asked, epochs=3, learning_rate=0.5).recipe == replace(usual, epochs=3, learning_rate=0.5)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model": "resnet51"}, UnknownModelError, "resnet51"),
        ({"int8_scope": "backbone"}, BundlerError, "no backbone apart"),
        ({"model": "yolov5n", "input_size": 100}, BundlerError, "no multiple"),
        ({"target": "arm65"}, UnknownTargetError, "arm65"),
        ({"modes": ("int8-qat",)}, BundlerError, "learns from pictures"),
        ({"model": "yolov5n", "modes": ("int8-qat",)}, BundlerError, "learns from pictures"),
        ({"modes": ("fp32", "int4")}, ModeUnavailableError, "no such mode"),
        ({"input_size": 16}, BundlerError, "too small"),
        ({"num_classes": 1}, BundlerError, "nothing to tell apart"),
        ({"max_drop": 1.0}, BundlerError, "no pictures to measure"),
    ],
)
def test_the_impossible_is_refused(changes: dict[str, Any], error: type[BundlerError], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        plan(**changes)
    assert caught.value.next_step


@pytest.mark.parametrize("weights", ["auto", "pretrained", "random"])
def test_a_key_of_weights_is_for_files(weights: str) -> None:
    assert plan(weights="mine.pth", weights_key="ema").weights_key == "ema"
    with pytest.raises(BundlerError, match=f"--weights is {weights}") as refusal:
        plan(weights=weights, weights_key="ema")
    assert refusal.value.exit_code == 2
