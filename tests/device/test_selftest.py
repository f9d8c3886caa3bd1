"""The selftest: its figures, its verdicts, and machines whose arithmetic is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from .conftest import ROWS, STEP, TinyBundle, decibels, mode_of, other_model, outputs_of, save_classifier, save_detector, spoil

SITE_PACKAGES = Path(sysconfig.get_paths()["platlib"])


def test_a_good_bundle_passes_with_figures_that_can_be_checked(bundle: TinyBundle) -> None:
    done = bundle.run("selftest", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "edge-bundler/selftest/2"
    assert document["bundle_sha256"] == hashlib.sha256((bundle.root / "runner.json").read_bytes()).hexdigest()
    assert document["bundle"] == "tiny-x86-fbgemm"
    assert document["verdict"] == "passed"
    assert document["graph_optimization_level"] == "all"
    assert document["machine"] == os.uname().machine
    assert document["emulator"] is None
    assert document["onnxruntime"] == onnxruntime.__version__
    assert document["known_answers"]["checks"]["onnxruntime integers"] is True

    outputs = bundle.load("golden/int8-ptq.npy")
    reference = bundle.load("golden/fp32.npy")
    assert np.ptp(reference) > 10
    noise = ((outputs.astype(float) - reference) ** 2).sum()
    assert mode_of(document, "int8-ptq") == {
        "name": "int8-ptq",
        "samples": 4,
        "model_sha256": hashlib.sha256((bundle.root / "models" / "int8-ptq.onnx").read_bytes()).hexdigest(),
        "outputs_sha256": hashlib.sha256(outputs.astype("<f4").tobytes()).hexdigest(),
        "sqnr_db": pytest.approx(10 * np.log10((reference.astype(float) ** 2).sum() / noise)),
        "top1_agreement": 1.0,
        "boxes_agreement": None,
        "max_steps": 0,
        "verdict": "passed",
        "reason": "",
    }
    assert mode_of(document, "fp32")["max_steps"] is None
    assert re.findall(r"^int8-ptq: image (\d) of 4$", done.stderr, re.MULTILINE) == ["1", "2", "3", "4"]


def failure(bundle: TinyBundle, name: str) -> str:
    done = bundle.run("selftest", "--json")
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert document["verdict"] == "failed"
    mode = mode_of(document, name)
    assert mode["verdict"] == "failed"
    return str(mode["reason"])


def test_outputs_too_many_steps_away_fail(bundle: TinyBundle) -> None:
    other_model(bundle, "int8-ptq", change=2.0, step=STEP)
    assert re.fullmatch(
        r"an output is \d+ quantization steps from the expected one; 8 are allowed", failure(bundle, "int8-ptq")
    )


def test_a_step_more_than_the_tolerance_fails_and_the_tolerance_itself_passes(bundle: TinyBundle) -> None:
    expected = bundle.load("golden/int8-ptq.npy")
    expected[2, 3] += 8 * STEP
    bundle.save("golden/int8-ptq.npy", expected)
    assert mode_of(bundle.selftest(), "int8-ptq")["max_steps"] == 8
    assert mode_of(bundle.selftest(), "int8-ptq")["verdict"] == "passed"
    expected[2, 3] += STEP
    bundle.save("golden/int8-ptq.npy", expected)
    assert failure(bundle, "int8-ptq").startswith("an output is 9 quantization steps")


def test_a_loss_of_signal_fails(bundle: TinyBundle) -> None:
    expected = mode_of(bundle.config, "int8-ptq")["expected_sqnr_db"]
    spoil(bundle, "int8-ptq", expected_sqnr_db=expected + 1.1)
    assert (
        failure(bundle, "int8-ptq")
        == f"SQNR to the FP32 outputs is {expected:.2f} dB; at least {expected + 0.1:.2f} dB are needed"
    )
    spoil(bundle, "int8-ptq", expected_sqnr_db=expected + 0.9)
    assert bundle.selftest()["verdict"] == "passed"


def test_a_slightly_different_float_model_fails(bundle: TinyBundle) -> None:
    other_model(bundle, "fp32", change=1.001, step=None)
    assert re.fullmatch(r"SQNR to the expected outputs is \d\d\.\d+ dB; at least 80.00 dB are needed", failure(bundle, "fp32"))


def test_outputs_that_are_not_finite_fail(bundle: TinyBundle) -> None:
    other_model(bundle, "fp32", change=float("inf"), step=None)
    assert failure(bundle, "fp32") == "the outputs are not finite"


@pytest.mark.parametrize("value", [0.0, 1.5, float("nan")])
def test_uninformative_expected_outputs_fail(bundle: TinyBundle, value: float) -> None:
    bundle.save("golden/int8-ptq.npy", np.full((4, 10), value, np.float32))
    assert "cannot reveal an error" in failure(bundle, "int8-ptq")


def test_expected_outputs_that_do_not_depend_on_the_image_fail(bundle: TinyBundle) -> None:
    bundle.save("golden/int8-ptq.npy", np.tile(bundle.load("golden/int8-ptq.npy")[:1], (4, 1)))
    assert "cannot reveal an error" in failure(bundle, "int8-ptq")


def test_outputs_of_another_shape_fail(bundle: TinyBundle) -> None:
    save_classifier(bundle.root / "models/fp32.onnx", np.ones((192, 5), np.float32), None)
    bundle.seal()
    assert failure(bundle, "fp32") == "the outputs have shape [1, 5], the expected outputs [1, 10]"


def test_a_model_that_onnxruntime_refuses_fails_alone(bundle: TinyBundle) -> None:
    (bundle.root / "models/fp32.onnx").write_bytes(b"not a model")
    bundle.seal()
    assert failure(bundle, "fp32").startswith("onnxruntime cannot run models/fp32.onnx: ")
    assert mode_of(bundle.selftest(), "int8-ptq")["verdict"] == "passed"


def test_an_output_of_another_name_fails(bundle: TinyBundle) -> None:
    random = np.random.default_rng(7)
    save_classifier(bundle.root / "models/fp32.onnx", random.normal(size=(192, 10)).astype(np.float32), None, output="scores")
    bundle.seal()
    assert "logits" in failure(bundle, "fp32")


def test_a_wrong_integer_answer_of_onnxruntime_fails_every_mode(bundle: TinyBundle) -> None:
    expected = bundle.load("golden/known-answer-expected.npy")
    expected[0, 0] += 1
    bundle.save("golden/known-answer-expected.npy", expected)
    document = bundle.selftest()
    assert document["known_answers"]["passed"] is False
    assert document["known_answers"]["checks"]["onnxruntime integers"] is False
    assert {mode["reason"] for mode in document["modes"]} == {"not run: the arithmetic of this machine is wrong"}
    assert document["verdict"] == "failed"


# ---- detectors


def result_of(bundle: TinyBundle, name: str) -> dict[str, Any]:
    return next(mode for mode in bundle.selftest()["modes"] if mode["name"] == name)


def test_a_good_detector_passes_with_figures_that_can_be_checked(detector: TinyBundle) -> None:
    outputs, reference = detector.load("golden/int8-ptq.npy"), detector.load("golden/fp32.npy")
    of_boxes, of_scores = decibels(reference[..., :4], outputs[..., :4]), decibels(reference[..., 4:], outputs[..., 4:])
    assert of_scores < of_boxes - 3
    assert result_of(detector, "int8-ptq") == {
        "name": "int8-ptq",
        "samples": 4,
        "model_sha256": hashlib.sha256((detector.root / "models" / "int8-ptq.onnx").read_bytes()).hexdigest(),
        "outputs_sha256": hashlib.sha256(outputs.astype("<f4").tobytes()).hexdigest(),
        "sqnr_db": pytest.approx(of_scores),
        "top1_agreement": None,
        "boxes_agreement": pytest.approx(2 / 3),  # of three detections in each picture, one is elsewhere
        "max_steps": None,
        "verdict": "passed",
        "reason": "",
    }
    fp32 = result_of(detector, "fp32")
    assert (fp32["verdict"], fp32["sqnr_db"], fp32["boxes_agreement"]) == ("passed", None, 1.0)


def test_people_read_how_many_boxes_agree(detector: TinyBundle) -> None:
    done = detector.run("selftest")
    assert done.returncode == 0
    assert re.search(r"^mode +verdict +images +SQNR +boxes as FP32 +max steps$", done.stdout, re.MULTILINE)
    assert re.search(r"^int8-ptq +passed +4 +\d+\.\d dB +67% +-$", done.stdout, re.MULTILINE)
    assert re.search(r"^fp32 +passed +1 +exact +100% +-$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(("part", "factor"), [(slice(0, 4), 1.001), (slice(4, None), 1.0002)])
def test_float_boxes_and_float_scores_are_judged_each_by_themselves(detector: TinyBundle, part: slice, factor: float) -> None:
    rows = ROWS.copy()
    rows[:, part] *= factor
    save_detector(detector.root / "models/fp32.onnx", rows)
    detector.seal()
    mode = result_of(detector, "fp32")
    assert mode["verdict"] == "failed"
    assert (
        mode["reason"]
        == f"SQNR to the expected outputs is {decibels(ROWS[:, part], rows[:, part]):.2f} dB; at least 80.00 dB are needed"
    )


def test_an_int8_detector_is_judged_by_what_it_had_on_the_build_host(detector: TinyBundle) -> None:
    proved = detector.config["modes"][0]["expected_sqnr_db"]
    rows = ROWS * np.array([1, 1, 1, 1, 0.7, 1, 1], np.float32)
    save_detector(detector.root / "models/int8-ptq.onnx", rows)
    detector.seal()
    mode = result_of(detector, "int8-ptq")
    given = outputs_of(detector.root / "models/int8-ptq.onnx", detector.load("golden/inputs.npy"))
    sqnr = decibels(detector.load("golden/fp32.npy")[..., 4:], given[..., 4:])
    assert sqnr < proved - 1
    assert mode["verdict"] == "failed"
    assert mode["reason"] == f"SQNR to the FP32 outputs is {sqnr:.2f} dB; at least {proved - 1:.2f} dB are needed"


def dead(values: np.ndarray) -> None:
    values[..., 4:] = values[:, :1, 4:]


def blind(values: np.ndarray) -> None:
    values[..., 4:] = values[0, :, 4:]


def shapeless(values: np.ndarray) -> None:
    values[..., :4] = 0


def broken(values: np.ndarray) -> None:
    values[0, 0, 0] = np.nan


@pytest.mark.parametrize("spoil", [dead, blind, shapeless, broken])
@pytest.mark.parametrize("name", ["golden/int8-ptq.npy", "golden/fp32.npy"])
def test_uninformative_golden_detections_fail(detector: TinyBundle, name: str, spoil: Callable[[np.ndarray], None]) -> None:
    values = detector.load(name)
    spoil(values)
    detector.save(name, values)
    mode = result_of(detector, "int8-ptq")
    assert mode["verdict"] == "failed"
    assert "cannot reveal an error" in mode["reason"]


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((5, 7), "the outputs have shape [1, 5, 7], the expected outputs [1, 6, 7]"),
        ((6, 5), "the output has shape [1, 6, 5], not [N, boxes, 5 + classes]"),
    ],
)
def test_detections_of_another_shape_fail(detector: TinyBundle, shape: tuple[int, int], reason: str) -> None:
    save_detector(detector.root / "models/fp32.onnx", ROWS[: shape[0], : shape[1]])
    detector.seal()
    assert result_of(detector, "fp32")["reason"] == reason


def test_a_classifier_in_the_place_of_a_detector_fails(detector: TinyBundle) -> None:
    weights = np.ones((192, 10), np.float32)
    save_classifier(detector.root / "models/fp32.onnx", weights, None, output="detections")
    detector.seal()
    assert result_of(detector, "fp32")["reason"] == "the output has shape [1, 10], not [N, boxes, 5 + classes]"


def test_where_nothing_is_detected_nothing_agrees(detector: TinyBundle) -> None:
    detector.save("golden/inputs.npy", detector.load("golden/inputs.npy") / 16)
    for name in ("fp32", "int8-ptq"):
        outputs = outputs_of(detector.root / f"models/{name}.onnx", detector.load("golden/inputs.npy"))
        detector.save(f"golden/{name}.npy", outputs)
    mode = result_of(detector, "int8-ptq")
    assert (mode["verdict"], mode["boxes_agreement"]) == ("passed", None)
    assert re.search(r"^int8-ptq +passed +4 +\d+\.\d dB +- +-$", detector.run("selftest").stdout, re.MULTILINE)
