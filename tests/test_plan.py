"""The plan: every choice made, and the impossible refused with the reason, before anything is read or written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundler.errors import BundlerError, ModeUnavailableError, UnknownModelError, UnknownTargetError
from bundler.plan import BuildJob, CalibrationRequest, plan_build
from bundler.training_options import CLASSIFIERS, DETECTORS, TrainingRecipe


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
        "tag": None,
        "output": Path("dist"),
        "seed": 0,
    }
    return plan_build(model, target, **{**choices, **changes})


def test_names_and_places() -> None:
    job = plan()
    assert job.identifier == "resnet50-arm64-qnnpack"
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
        ({"model": "yolov5n", "input_size": 100}, BundlerError, "must be a multiple of 32"),
        ({"target": "arm65"}, UnknownTargetError, "arm65"),
        ({"modes": ("int8-qat",)}, BundlerError, "learns from pictures"),
        ({"model": "yolov5n", "modes": ("int8-qat",)}, BundlerError, "learns from pictures"),
        ({"modes": ("fp32", "int4")}, ModeUnavailableError, "no such mode"),
        ({"model": "yolov5n", "input_size": (96, 100)}, BundlerError, "multiple of 32 for yolov5n"),
        ({"input_size": 16}, BundlerError, "must be at least 32"),
        ({"input_size": (64, 16)}, BundlerError, r"\(got 64x16\)"),
        ({"input_size": (64, 100_000)}, BundlerError, "must be at most 4096"),
        ({"num_classes": 1}, BundlerError, "nothing to tell apart"),
        ({"max_drop": 1.0}, BundlerError, "no pictures to measure"),
    ],
)
def test_the_impossible_is_refused(changes: dict[str, Any], error: type[BundlerError], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        plan(**changes)
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("mine", "mine:latest"),
        ("vision/mobilenet_v2:1.2.0", "vision/mobilenet_v2:1.2.0"),
        ("localhost:5000/a/b:V1", "localhost:5000/a/b:V1"),
        ("ghcr.io/someone/x-y", "ghcr.io/someone/x-y:latest"),
        (None, None),
    ],
)
def test_the_name_of_the_device_image(given: str | None, kept: str | None) -> None:
    assert plan(tag=given).tag == kept


@pytest.mark.parametrize(
    "given", ["", "Upper", "a b", "-x", "x:", "x:a/b", "a//b", "../x", "x\n", "x@sha256:0", "y:" + "t" * 129]
)
def test_a_name_that_no_registry_takes_is_refused(given: str) -> None:
    with pytest.raises(BundlerError, match="--tag must be the name of an image") as caught:
        plan(tag=given)
    assert caught.value.exit_code == 2


def test_a_cfg_is_for_darknets_networks() -> None:
    assert plan("yolov4", cfg=Path("mine.cfg")).cfg == Path("mine.cfg")
    assert plan("yolov3").cfg is None
    for model in ("yolov5n", "resnet18"):
        with pytest.raises(BundlerError, match=f"--cfg describes a network of Darknet's, and {model} is none") as refusal:
            plan(model, cfg=Path("mine.cfg"))
        assert "yolov3 and yolov4" in refusal.value.next_step
        assert refusal.value.exit_code == 2


@pytest.mark.parametrize("weights", ["auto", "pretrained", "random"])
def test_a_key_of_weights_is_for_files(weights: str) -> None:
    assert plan(weights="mine.pth", weights_key="ema").weights_key == "ema"
    with pytest.raises(BundlerError, match=f"--weights is {weights}") as refusal:
        plan(weights=weights, weights_key="ema")
    assert refusal.value.exit_code == 2
