"""The plan: every choice is made, and impossible requests are refused, before anything is read or written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundler.errors import BundlerError, ModeUnavailableError, UnknownModelError, UnknownTargetError
from bundler.plan import BuildJob, BuildRequest, CalibrationRequest, DeviceImageRequest, PtqRequest, WeightsRequest, plan_build
from bundler.training_options import CLASSIFIERS, DETECTORS, TrainingOptions


def plan(model: str = "resnet50", target: str = "arm64", **changes: Any) -> BuildJob:
    weights = {key: changes.pop(key) for key in ("source", "key", "num_classes", "cfg") if key in changes}
    choices: dict[str, Any] = {
        "weights": WeightsRequest(**{"source": "auto", **weights}),
        "calibration": CalibrationRequest(folder=None, pictures=8, batch_size=4),
        "epochs": 8,
        "output": Path("dist"),
        "seed": 0,
    }
    return plan_build(BuildRequest(model=model, target=target, **{**choices, **changes}))


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
def test_a_detector_is_trained_otherwise_than_a_classifier(model: str, usual: TrainingOptions) -> None:
    asked: dict[str, Any] = {"model": model, "modes": ("int8-qat",), "data": Path()}
    request = plan(**asked).qat
    assert request is not None
    assert request.training == usual
    other = plan(**asked, epochs=3, learning_rate=0.5).qat
    assert other is not None
    assert other.training == replace(usual, epochs=3, learning_rate=0.5)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model": "resnet51"}, UnknownModelError, "resnet51"),
        (
            {"int8_scope": "backbone"},
            BundlerError,
            "--int8-scope backbone is supported for detectors only; resnet50 is a classifier",
        ),
        (
            {"model": "yolov5n", "input_size": 100},
            BundlerError,
            r"--input-size must be a multiple of 32 for yolov5n \(got 100\)",
        ),
        ({"target": "arm65"}, UnknownTargetError, "arm65"),
        ({"modes": ("int8-qat",)}, BundlerError, "int8-qat requires images to train on"),
        ({"model": "yolov5n", "modes": ("int8-qat",)}, BundlerError, "int8-qat requires images"),
        ({"modes": ("fp32", "int4")}, ModeUnavailableError, "no such mode"),
        ({"model": "yolov5n", "input_size": (96, 100)}, BundlerError, r"multiple of 32 for yolov5n \(got 96x100\)"),
        ({"input_size": 16}, BundlerError, "must be at least 32"),
        ({"input_size": (64, 16)}, BundlerError, r"\(got 64x16\)"),
        ({"input_size": (64, 100_000)}, BundlerError, "must be at most 4096"),
        ({"num_classes": 1}, BundlerError, r"--num-classes must be at least 2 \(got 1\)"),
        ({"model": "yolov5n", "num_classes": 0}, BundlerError, r"--num-classes must be at least 1 \(got 0\)"),
        ({"max_drop": 1.0}, BundlerError, "--max-drop requires --data"),
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
    assert plan(image=DeviceImageRequest(tag=given)).image.tag == kept


@pytest.mark.parametrize(
    "given", ["", "Upper", "a b", "-x", "x:", "x:a/b", "a//b", "../x", "x\n", "x@sha256:0", "y:" + "t" * 129]
)
def test_a_name_that_no_registry_takes_is_refused(given: str) -> None:
    with pytest.raises(BundlerError, match="--tag must be REPOSITORY or REPOSITORY:TAG") as caught:
        plan(image=DeviceImageRequest(tag=given))
    assert caught.value.exit_code == 2


def test_a_cfg_is_for_darknets_networks() -> None:
    assert plan("yolov4", cfg=Path("mine.cfg")).weights.cfg == Path("mine.cfg")
    assert plan("yolov3").weights.cfg is None
    for model in ("yolov5n", "resnet18"):
        with pytest.raises(BundlerError, match=f"--cfg is supported for yolov3 and yolov4 only, not for {model}") as refusal:
            plan(model, cfg=Path("mine.cfg"))
        assert refusal.value.exit_code == 2


@pytest.mark.parametrize("weights", ["auto", "pretrained", "random"])
def test_a_key_of_weights_is_for_files(weights: str) -> None:
    assert plan(source="mine.pth", key="ema").weights.key == "ema"
    with pytest.raises(BundlerError, match=f"--weights is {weights}") as refusal:
        plan(source=weights, key="ema")
    assert refusal.value.exit_code == 2


def test_the_modes_are_requests_of_their_own_kind() -> None:
    job = plan(modes=("int8-ptq",), data=Path("data"), max_drop=1.0)
    assert (job.fp32, job.qat, job.modes) == (False, None, ("int8-ptq",))
    assert job.ptq == PtqRequest(accuracy=job.accuracy)
    trained = plan(modes=("int8-qat", "fp32"), data=Path("data"))
    assert trained.qat is not None
    assert trained.qat.accuracy.data == Path("data")
    assert trained.modes == ("fp32", "int8-qat")
