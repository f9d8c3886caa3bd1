"""The device runner's detections: what suppresses what, what agrees with what, and a tiny detector run as a program."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from .conftest import ROWS, TinyBundle, decibels, outputs_of, save_classifier, save_detector

Found = list[tuple[int, float, tuple[float, ...]]]  # class, score, box


def rows_of(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(len(rows), -1) if rows else np.zeros((0, 6), np.float32)


def detected(runner: ModuleType, rows: np.ndarray, confidence: float = 0.25, iou: float = 0.45, **options: Any) -> Found:
    found = runner.detect(rows, confidence, iou, **options)
    boxes = [tuple(box) for box in found.boxes.tolist()]
    return list(zip(found.classes.tolist(), found.scores.tolist(), boxes, strict=True))


# ---- non-maximum suppression


def by_brute_force(rows: np.ndarray, confidence: float, iou: float, *, multi_label: bool = True) -> Found:
    """Compare every candidate with every kept one, in exact fractions."""
    candidates = []
    for x, y, width, height, objectness, *classes in rows.tolist():
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        scores = [objectness * share for share in classes]
        kinds = range(len(scores)) if multi_label else [scores.index(max(scores))]
        candidates += [(kind, scores[kind], box) for kind in kinds if objectness > confidence and scores[kind] > confidence]
    kept: Found = []
    for kind, score, box in sorted(candidates, key=lambda candidate: -candidate[1]):
        if all(kind != other or overlap(box, better) <= iou for other, _, better in kept):
            kept.append((kind, score, box))
    return kept


def overlap(box: tuple[float, ...], other: tuple[float, ...]) -> float:
    if box == other:
        return 1.0
    (a, b, c, d), (e, f, g, h) = (map(Fraction, edges) for edges in (box, other))
    shared = max(min(c, g) - max(a, e), 0) * max(min(d, h) - max(b, f), 0)
    union = (c - a) * (d - b) + (g - e) * (h - f) - shared
    return float(shared / union) if union else 0.0


def several_rows(classes: int) -> st.SearchStrategy[np.ndarray]:
    """Draw boxes of few places and sizes, some empty, and scores of few values, so that much overlaps and ties."""
    place, size, share = st.integers(0, 6), st.integers(0, 5), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
    row = st.tuples(place, place, size, size, share, *[share] * classes)
    return st.lists(row, max_size=20).map(lambda rows: np.array(rows, np.float32).reshape(-1, 5 + classes))


thresholds = st.sampled_from([0.0, 0.25, 0.45, 0.5, 1.0]) | st.floats(0, 1)


@given(rows=st.integers(1, 4).flatmap(several_rows), confidence=thresholds, iou=thresholds, multi_label=st.booleans())
def test_it_is_what_brute_force_finds(
    runner: ModuleType, rows: np.ndarray, confidence: float, iou: float, multi_label: bool
) -> None:
    found = detected(runner, rows, confidence, iou, multi_label=multi_label)
    assert found == by_brute_force(rows, confidence, iou, multi_label=multi_label)


@given(seed=st.integers(0, 10_000), iou=thresholds, multi_label=st.booleans())
def test_it_is_what_brute_force_finds_in_many_boxes_anywhere(
    runner: ModuleType, seed: int, iou: float, multi_label: bool
) -> None:
    random = np.random.default_rng(seed)
    rows = np.concatenate([random.uniform(0, 64, (60, 2)), random.uniform(0, 40, (60, 2)), random.random((60, 4))], axis=1)
    found = detected(runner, rows.astype(np.float32), 0.1, iou, multi_label=multi_label)
    assert found == by_brute_force(rows.astype(np.float32), 0.1, iou, multi_label=multi_label)
    assert found != []
    assert [score for _, score, _ in found] == sorted((score for _, score, _ in found), reverse=True)


def as_yolov5_does(
    rows: np.ndarray, confidence: float, iou: float, *, multi_label: bool, agnostic: bool, classes: list[int] | None
) -> np.ndarray:
    """Transcribe `non_max_suppression` of YOLOv5's utils/general.py, release 7: [left, top, right, bottom, score, class]."""
    x = rows[rows[:, 4] > confidence].astype(np.float64)
    x[:, 5:] *= x[:, 4:5]
    box = np.concatenate([x[:, :2] - x[:, 2:4] / 2, x[:, :2] + x[:, 2:4] / 2], axis=1)
    if multi_label:
        i, j = np.nonzero(x[:, 5:] > confidence)
        x = np.concatenate([box[i], x[i, j + 5][:, None], j[:, None]], axis=1)
    else:
        best = x[:, 5:].max(1, keepdims=True)
        x = np.concatenate([box, best, x[:, 5:].argmax(1)[:, None]], axis=1)[best[:, 0] > confidence]
    if classes is not None:
        x = x[(x[:, 5:6] == np.array(classes)).any(1)]
    x = x[np.argsort(-x[:, 4], kind="stable")]
    shifted = x[:, :4] + x[:, 5:6] * (0 if agnostic else 7680)
    kept: list[int] = []
    for one, (left, top, right, bottom) in enumerate(shifted):
        others = shifted[kept]
        width = np.minimum(right, others[:, 2]) - np.maximum(left, others[:, 0])
        height = np.minimum(bottom, others[:, 3]) - np.maximum(top, others[:, 1])
        shared = width.clip(0) * height.clip(0)
        areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
        if (shared / ((right - left) * (bottom - top) + areas - shared) <= iou).all():
            kept.append(one)
    return x[kept[:300]]


@pytest.mark.parametrize("classes", [None, [1, 3]])
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("multi_label", [False, True])
def test_it_is_what_yolov5_finds(runner: ModuleType, multi_label: bool, agnostic: bool, classes: list[int] | None) -> None:
    random = np.random.default_rng(9)
    rows = np.concatenate(
        [random.uniform(0, 640, (400, 2)), random.uniform(50, 300, (400, 2)), random.random((400, 6))], axis=1
    )
    options = {"multi_label": multi_label, "agnostic": agnostic, "classes": classes}
    expected = as_yolov5_does(rows, 0.25, 0.45, **options)
    found = runner.detect(rows, 0.25, 0.45, **options)
    assert found.classes.tolist() == expected[:, 5].tolist()
    np.testing.assert_allclose(found.scores, expected[:, 4], rtol=1e-12)
    np.testing.assert_allclose(found.boxes, expected[:, :4], rtol=1e-12, atol=1e-9)


def test_nothing_is_found_in_nothing(runner: ModuleType) -> None:
    assert detected(runner, rows_of()) == []
    assert detected(runner, rows_of((4, 4, 2, 2, 0.1, 0.9))) == []


def test_one_box(runner: ModuleType) -> None:
    assert detected(runner, rows_of((4, 5, 2, 6, 0.5, 0.75))) == [(0, 0.375, (3, 2, 5, 8))]


def test_of_boxes_that_are_all_the_same_the_first_of_the_best_stays(runner: ModuleType) -> None:
    assert detected(runner, rows_of(*[(4, 4, 2, 2, 1, 0.5)] * 50)) == [(0, 0.5, (3, 3, 5, 5))]
    assert len(detected(runner, rows_of(*[(4, 4, 2, 2, 1, 0.5)] * 50), iou=1)) == 50


def test_ties_keep_the_order_of_the_output(runner: ModuleType) -> None:
    rows = rows_of((5, 4, 4, 4, 1, 0.5), (4, 4, 4, 4, 1, 0.5), (40, 4, 4, 4, 1, 0.5))
    assert [box[0] for _, _, box in detected(runner, rows)] == [3, 38]
    assert [box[0] for _, _, box in detected(runner, rows[::-1])] == [38, 2]


def test_what_was_suppressed_suppresses_nothing(runner: ModuleType) -> None:
    rows = rows_of((4, 4, 4, 4, 1, 0.9), (5, 4, 4, 4, 1, 0.8), (6, 4, 4, 4, 1, 0.7))  # IoU of neighbours 0.6, of the ends 1/3
    assert [box[0] for _, _, box in detected(runner, rows)] == [2, 4]


def test_other_classes_suppress_nothing_and_a_box_is_of_its_best_class(runner: ModuleType) -> None:
    rows = rows_of((4, 4, 4, 4, 1, 0.5, 0.75, 0.25), (4, 4, 4, 4, 1, 0, 0.5, 0), (4, 4, 4, 4, 1, 0.4, 0, 0.3))
    assert [found[:2] for found in detected(runner, rows)] == [(1, 0.75), (0, 0.4000000059604645)]
    several = [found[:2] for found in detected(runner, rows, multi_label=True)]
    assert several == [(1, 0.75), (0, 0.5), (2, 0.30000001192092896)]
    assert [found[:2] for found in detected(runner, rows, multi_label=True, agnostic=True)] == [(1, 0.75)]
    assert [found[:2] for found in detected(runner, rows, classes=[0, 2])] == [(0, 0.4000000059604645)]


@pytest.mark.parametrize(("iou", "kept"), [(0.0, 1), (0.49, 1), (0.5, 2), (0.51, 2), (1.0, 2)])
def test_only_what_overlaps_by_more_than_the_threshold_is_suppressed(runner: ModuleType, iou: float, kept: int) -> None:
    half = rows_of((4, 4, 4, 4, 1, 0.9), (4, 3, 4, 2, 1, 0.8))
    assert len(detected(runner, half, iou=iou)) == kept


def test_boxes_that_only_touch_do_not_overlap(runner: ModuleType) -> None:
    assert len(detected(runner, rows_of((2, 2, 4, 4, 1, 0.9), (6, 2, 4, 4, 1, 0.8)), iou=0)) == 2


@pytest.mark.parametrize(("confidence", "scores"), [(0.0, [1, 0.5, 2**-20]), (0.5, [1]), (1.0, [])])
def test_only_what_scores_above_the_confidence_is_found(runner: ModuleType, confidence: float, scores: list[float]) -> None:
    rows = rows_of(
        (1, 1, 1, 1, 1, 1), (3, 1, 1, 1, 1, 0.5), (5, 1, 1, 1, 2**-10, 2**-10), (7, 1, 1, 1, 0, 1), (9, 1, 1, 1, 1, 0)
    )
    assert [score for _, score, _ in detected(runner, rows, confidence)] == scores


def test_empty_boxes_overlap_only_with_themselves(runner: ModuleType) -> None:
    rows = rows_of((4, 4, 0, 0, 1, 0.9), (4, 4, 0, 0, 1, 0.8), (4, 4, 0, 2, 1, 0.7), (4, 4, 2, 2, 1, 0.6))
    assert [score for _, score, _ in detected(runner, rows)] == pytest.approx([0.9, 0.7, 0.6])


def test_at_most_300_are_kept_and_they_are_the_best(runner: ModuleType) -> None:
    scores = np.random.default_rng(1).permutation(np.linspace(0.3, 0.9, 400)).astype(np.float32)
    rows = rows_of(*((10.0 * index, 4, 2, 2, 1, score) for index, score in enumerate(scores)))
    assert [score for _, score, _ in detected(runner, rows)] == sorted(scores.tolist(), reverse=True)[:300]


@pytest.mark.parametrize(("better", "found"), [(29_999, 2), (30_000, 1)])
def test_at_most_30000_candidates_are_looked_at(runner: ModuleType, better: int, found: int) -> None:
    rows = np.full((better + 1, 6), [4, 4, 2, 2, 1, 0.9], np.float32)
    rows[0] = [40, 4, 2, 2, 1, 0.5]
    assert len(detected(runner, rows)) == found


# ---- agreement

HERE, BESIDE, FAR = (4, 4, 4, 4), (5, 4, 4, 4), (40, 4, 4, 4)  # HERE and BESIDE overlap by 0.6


def agreement(runner: ModuleType, found: np.ndarray, reference: np.ndarray) -> float | None:
    share: float | None = runner.boxes_agreement(found[None], reference[None])
    return share


@given(rows=several_rows(2))
def test_the_same_outputs_agree_wholly(runner: ModuleType, rows: np.ndarray) -> None:
    assert agreement(runner, rows, rows) == (1.0 if detected(runner, rows) else None)


@given(one=several_rows(2), other=several_rows(2))
def test_an_agreement_is_a_share_that_a_box_far_away_lowers(runner: ModuleType, one: np.ndarray, other: np.ndarray) -> None:
    share = agreement(runner, one, other)
    lower = agreement(runner, np.concatenate([one, rows_of((*FAR, 1, 1, 0))]), other)
    assert lower is not None
    assert share is None or 0 <= share <= 1
    assert lower < share if share else lower == 0


def test_it_counts_what_both_have(runner: ModuleType) -> None:
    here, far, nobody = rows_of((*HERE, 1, 1, 0)), rows_of((*FAR, 1, 1, 0)), rows_of((*HERE, 0, 1, 1))
    assert agreement(runner, here, far) == 0.0
    assert agreement(runner, np.concatenate([here, far]), far) == pytest.approx(2 / 3)
    assert agreement(runner, here, nobody) == agreement(runner, nobody, here) == 0.0
    assert agreement(runner, nobody, nobody) is None
    assert agreement(runner, here, rows_of((*BESIDE, 1, 1, 0))) == 1.0
    assert agreement(runner, here, rows_of((*HERE, 1, 0, 1))) == 0.0  # of the other class


@pytest.mark.parametrize(("height", "share"), [(2.0, 1.0), (1.9, 0.0)])
def test_half_an_overlap_is_enough(runner: ModuleType, height: float, share: float) -> None:
    assert agreement(runner, rows_of((*HERE, 1, 1)), rows_of((4, 4, 4, height, 1, 1))) == share


def test_a_reference_is_used_once(runner: ModuleType) -> None:
    two, one = rows_of((4, 4, 10, 10, 1, 0.8), (4, 7.5, 10, 10, 1, 0.9)), rows_of((4, 5, 10, 10, 1, 1), (0, 0, 0, 0, 0, 0))
    found, reference = (runner.detect(rows, 0.25, 0.6) for rows in (two, one))
    assert (len(found.scores), len(reference.scores)) == (2, 1)
    assert runner.matched(found, reference) == runner.matched(reference, found) == 1


def test_the_best_detection_chooses_first_and_takes_what_it_overlaps_most(runner: ModuleType) -> None:
    found = runner.detect(rows_of((4, 7, 10, 10, 1, 0.9), (4, 4, 10, 10, 1, 0.8)), 0.25, 0.6)
    near_both, near_best = (4, 4.5, 10, 10, 1, 1), (4, 8, 10, 10, 1, 0.9)
    assert runner.matched(found, runner.detect(rows_of(near_both, near_best), 0.25, 0.6)) == 2
    near_both, near_second = (4, 5.4, 10, 10, 1, 1), (4, 0.9, 10, 10, 1, 0.9)  # the second would rather have the first one
    assert runner.matched(found, runner.detect(rows_of(near_both, near_second), 0.25, 0.6)) == 2
    between, below = (4, 6, 10, 10, 1, 1), (4, 9, 10, 10, 1, 0.9)  # the best takes the one between, and leaves none near
    assert runner.matched(found, runner.detect(rows_of(between, below), 0.25, 0.6)) == 1


def test_the_share_is_over_all_pictures(runner: ModuleType) -> None:
    here, far = rows_of((*HERE, 1, 1), (*HERE, 0, 0)), rows_of((*HERE, 1, 1), (*FAR, 1, 1))
    assert runner.boxes_agreement(np.stack([here, far]), np.stack([here, here])) == pytest.approx(2 * 2 / 5)


# ---- run

ONE = [
    {"class": 0, "score": 0.75, "box": [0.0, 0.0, 4.0, 4.0]},
    {"class": 1, "score": 0.625, "box": [0.5, 0.0, 4.5, 4.0]},
    {"class": 1, "score": 0.46875, "box": [5.0, 5.0, 8.0, 8.0]},
]
SECOND = (0, 0.375)  # of the last box, its class that is not the best


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    """Two pictures, in the first of which is everything and in the second nothing."""
    batch = np.zeros((2, 3, 8, 8), np.float32)
    batch[0, 0, 0, 0] = 1
    np.save(tmp_path / "two.npy", batch)
    return str(tmp_path / "two.npy")


def test_run_gives_detections(detector: TinyBundle, pictures: str) -> None:
    done = detector.run("run", "--json", "--mode", "fp32", pictures)
    assert (done.returncode, done.stderr) == (0, "fp32: picture 1 of 2\nfp32: picture 2 of 2\n")
    assert json.loads(done.stdout) == {
        "schema": "edge-bundler/run/1",
        "bundle": "tiny-x86-fbgemm",
        "mode": "fp32",
        "results": [
            {"file": pictures, "picture": 0, "detections": ONE},
            {"file": pictures, "picture": 1, "detections": []},
        ],
    }


def test_run_gives_people_a_table_of_detections(detector: TinyBundle, pictures: str) -> None:
    lines = detector.run("run", "--mode", "fp32", pictures).stdout.splitlines()
    assert [line.removeprefix(pictures).split() for line in lines] == [
        ["file", "picture", "class", "score", "left", "top", "right", "bottom"],
        ["0", "0", "0.7500", "0.0", "0.0", "4.0", "4.0"],
        ["0", "1", "0.6250", "0.5", "0.0", "4.5", "4.0"],
        ["0", "1", "0.4688", "5.0", "5.0", "8.0", "8.0"],
        ["1", "nothing", "above", "0.25"],
    ]


def test_run_takes_a_confidence_and_an_overlap(detector: TinyBundle, pictures: str) -> None:
    def found(*options: str) -> list[Any]:
        done = detector.run("run", "--json", "--mode", "fp32", *options, pictures)
        return [(one["class"], one["score"]) for one in json.loads(done.stdout)["results"][0]["detections"]]

    best, *others = [(one["class"], one["score"]) for one in ONE]
    assert found("--confidence", "0.7") == [best]
    assert found("--confidence", "1") == []
    assert found("--confidence", "0.2") == [best, *others, (0, 0.25)]
    assert found("--iou", "0.8") == [best, others[0], (0, 0.5), *others[1:]]
    assert found("--iou", "0") == [best, *others]
    assert found("--multi-label") == [best, *others, SECOND]
    assert found("--multi-label", "--classes", "0") == [best, SECOND]
    assert found("--classes", "1,0") == [best, *others]
    assert found("--classes", "1") == others
    assert found("--agnostic") == [best, others[1]]
    assert "nothing above 0.9\n" in detector.run("run", "--mode", "fp32", "--confidence", "0.9", pictures).stdout


@pytest.mark.parametrize("option", ["--confidence", "--iou"])
@pytest.mark.parametrize("value", ["-0.1", "1.01", "nan", "inf", "much", ""])
def test_a_threshold_that_is_no_share_is_refused(detector: TinyBundle, pictures: str, option: str, value: str) -> None:
    done = detector.run("run", "--mode", "fp32", option, value, pictures)
    assert done.returncode == 2
    assert f"argument {option}: {value!r} is not a number from 0 to 1\n" in done.stderr


@pytest.mark.parametrize("value", ["", "a", "1,", "-1", "1.5", "1 2"])
def test_classes_that_are_no_numbers_are_refused(detector: TinyBundle, pictures: str, value: str) -> None:
    done = detector.run("run", "--mode", "fp32", f"--classes={value}", pictures)
    assert done.returncode == 2
    assert f"argument --classes: {value!r} is not a list of class numbers, such as 0,2,5\n" in done.stderr


def test_a_class_that_the_detector_does_not_have_is_refused(detector: TinyBundle, pictures: str) -> None:
    done = detector.run("run", "--mode", "fp32", "--classes", "0,2", pictures)
    assert done.returncode == 2
    assert "error: --classes has 2, and this detector has classes 0 to 1\n" in done.stderr


def test_run_refuses_a_detector_of_another_form(detector: TinyBundle, pictures: str) -> None:
    save_detector(detector.root / "models/fp32.onnx", ROWS[:, :5])
    detector.seal()
    done = detector.run("run", "--mode", "fp32", pictures)
    assert done.returncode == 2
    assert "error: the output has shape [1, 6, 5], not [N, boxes, 5 + classes]\n" in done.stderr


def test_run_says_that_a_classifier_gave_boxes(detector: TinyBundle, pictures: str) -> None:
    detector.configure({**detector.config, "task": "classification"})
    done = detector.run("run", "--mode", "fp32", pictures)
    assert done.returncode == 2
    assert "error: the output has shape [1, 6, 7], not one score per class\n" in done.stderr


def test_the_help_of_run_is_for_both_tasks(detector: TinyBundle) -> None:
    text = detector.run("run", "--help").stdout
    assert "run pictures that are resized and normalised already" in text
    assert re.search(r"--confidence SCORE\s.*\(default:\s+0\.25\)\s+--iou SHARE\s.*\(default:\s+0\.45\)", text, re.DOTALL)


def test_info_tells_the_task(detector: TinyBundle) -> None:
    assert detector.run("info").stdout.startswith("tiny-x86-fbgemm: detection, image -> detections, ")
    assert json.loads(detector.run("info", "--json").stdout)["task"] == "detection"


# ---- selftest


def mode_of(bundle: TinyBundle, name: str) -> dict[str, Any]:
    return next(mode for mode in bundle.selftest()["modes"] if mode["name"] == name)


def test_a_good_detector_passes_with_figures_that_can_be_checked(detector: TinyBundle) -> None:
    outputs, reference = detector.load("golden/int8-ptq.npy"), detector.load("golden/fp32.npy")
    of_boxes, of_scores = decibels(reference[..., :4], outputs[..., :4]), decibels(reference[..., 4:], outputs[..., 4:])
    assert of_scores < of_boxes - 3
    assert mode_of(detector, "int8-ptq") == {
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
    fp32 = mode_of(detector, "fp32")
    assert (fp32["verdict"], fp32["sqnr_db"], fp32["boxes_agreement"]) == ("passed", None, 1.0)


def test_people_read_how_many_boxes_agree(detector: TinyBundle) -> None:
    done = detector.run("selftest")
    assert done.returncode == 0
    assert re.search(r"^mode +verdict +pictures +SQNR +boxes as FP32 +steps off$", done.stdout, re.MULTILINE)
    assert re.search(r"^int8-ptq +passed +4 +\d+\.\d dB +67% +-$", done.stdout, re.MULTILINE)
    assert re.search(r"^fp32 +passed +1 +exact +100% +-$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(("part", "factor"), [(slice(0, 4), 1.001), (slice(4, None), 1.0002)])
def test_float_boxes_and_float_scores_are_judged_each_by_themselves(detector: TinyBundle, part: slice, factor: float) -> None:
    rows = ROWS.copy()
    rows[:, part] *= factor
    save_detector(detector.root / "models/fp32.onnx", rows)
    detector.seal()
    mode = mode_of(detector, "fp32")
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
    mode = mode_of(detector, "int8-ptq")
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
def test_golden_detections_that_prove_nothing_fail(
    detector: TinyBundle, name: str, spoil: Callable[[np.ndarray], None]
) -> None:
    values = detector.load(name)
    spoil(values)
    detector.save(name, values)
    mode = mode_of(detector, "int8-ptq")
    assert mode["verdict"] == "failed"
    assert "prove nothing" in mode["reason"]


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
    assert mode_of(detector, "fp32")["reason"] == reason


def test_a_classifier_in_the_place_of_a_detector_fails(detector: TinyBundle) -> None:
    weights = np.ones((192, 10), np.float32)
    save_classifier(detector.root / "models/fp32.onnx", weights, None, output="detections")
    detector.seal()
    assert mode_of(detector, "fp32")["reason"] == "the output has shape [1, 10], not [N, boxes, 5 + classes]"


def test_where_nothing_is_detected_nothing_agrees(detector: TinyBundle) -> None:
    detector.save("golden/inputs.npy", detector.load("golden/inputs.npy") / 16)
    for name in ("fp32", "int8-ptq"):
        outputs = outputs_of(detector.root / f"models/{name}.onnx", detector.load("golden/inputs.npy"))
        detector.save(f"golden/{name}.npy", outputs)
    mode = mode_of(detector, "int8-ptq")
    assert (mode["verdict"], mode["boxes_agreement"]) == ("passed", None)
    assert re.search(r"^int8-ptq +passed +4 +\d+\.\d dB +- +-$", detector.run("selftest").stdout, re.MULTILINE)
