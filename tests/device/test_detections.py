"""Detections: what suppresses what, as YOLOv5 and brute force have it, and what agrees with what."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.device.detections import boxes_agreement, detect, matched, shown

Found = list[tuple[int, float, tuple[float, ...]]]  # class, score, box


def rows_of(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(len(rows), -1) if rows else np.zeros((0, 6), np.float32)


def detected(rows: np.ndarray, confidence: float = 0.25, iou: float = 0.45, **options: Any) -> Found:
    found = detect(rows, confidence, iou, **options)
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
    shared = max(min(c, g) - max(a, e), Fraction(0)) * max(min(d, h) - max(b, f), Fraction(0))
    union = (c - a) * (d - b) + (g - e) * (h - f) - shared
    return float(shared / union) if union else 0.0


def several_rows(classes: int) -> st.SearchStrategy[np.ndarray]:
    """Draw boxes of few places and sizes, some empty, and scores of few values, so that much overlaps and ties."""
    place, size, share = st.integers(0, 6), st.integers(0, 5), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
    row = st.tuples(place, place, size, size, share, *[share] * classes)
    return st.lists(row, max_size=20).map(lambda rows: np.array(rows, np.float32).reshape(-1, 5 + classes))


thresholds = st.sampled_from([0.0, 0.25, 0.45, 0.5, 1.0]) | st.floats(0, 1)


@given(rows=st.integers(1, 4).flatmap(several_rows), confidence=thresholds, iou=thresholds, multi_label=st.booleans())
def test_it_is_what_brute_force_finds(rows: np.ndarray, confidence: float, iou: float, multi_label: bool) -> None:
    found = detected(rows, confidence, iou, multi_label=multi_label)
    assert found == by_brute_force(rows, confidence, iou, multi_label=multi_label)


@given(seed=st.integers(0, 10_000), iou=thresholds, multi_label=st.booleans())
def test_it_is_what_brute_force_finds_in_many_boxes_anywhere(seed: int, iou: float, multi_label: bool) -> None:
    random = np.random.default_rng(seed)
    rows = np.concatenate([random.uniform(0, 64, (60, 2)), random.uniform(0, 40, (60, 2)), random.random((60, 4))], axis=1)
    found = detected(rows.astype(np.float32), 0.1, iou, multi_label=multi_label)
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
def test_it_is_what_yolov5_finds(multi_label: bool, agnostic: bool, classes: list[int] | None) -> None:
    random = np.random.default_rng(9)
    rows = np.concatenate(
        [random.uniform(0, 640, (400, 2)), random.uniform(50, 300, (400, 2)), random.random((400, 6))], axis=1
    )
    options: dict[str, Any] = {"multi_label": multi_label, "agnostic": agnostic, "classes": classes}
    expected = as_yolov5_does(rows, 0.25, 0.45, **options)
    found = detect(rows, 0.25, 0.45, **options)
    assert found.classes.tolist() == expected[:, 5].tolist()
    np.testing.assert_allclose(found.scores, expected[:, 4], rtol=1e-12)
    np.testing.assert_allclose(found.boxes, expected[:, :4], rtol=1e-12, atol=1e-9)


def test_nothing_is_found_in_nothing() -> None:
    assert detected(rows_of()) == []
    assert detected(rows_of((4, 4, 2, 2, 0.1, 0.9))) == []


def test_one_box() -> None:
    assert detected(rows_of((4, 5, 2, 6, 0.5, 0.75))) == [(0, 0.375, (3, 2, 5, 8))]


def test_of_boxes_that_are_all_the_same_the_first_of_the_best_stays() -> None:
    assert detected(rows_of(*[(4, 4, 2, 2, 1, 0.5)] * 50)) == [(0, 0.5, (3, 3, 5, 5))]
    assert len(detected(rows_of(*[(4, 4, 2, 2, 1, 0.5)] * 50), iou=1)) == 50


def test_ties_keep_the_order_of_the_output() -> None:
    rows = rows_of((5, 4, 4, 4, 1, 0.5), (4, 4, 4, 4, 1, 0.5), (40, 4, 4, 4, 1, 0.5))
    assert [box[0] for _, _, box in detected(rows)] == [3, 38]
    assert [box[0] for _, _, box in detected(rows[::-1])] == [38, 2]


def test_what_was_suppressed_suppresses_nothing() -> None:
    rows = rows_of((4, 4, 4, 4, 1, 0.9), (5, 4, 4, 4, 1, 0.8), (6, 4, 4, 4, 1, 0.7))  # IoU of neighbours 0.6, of the ends 1/3
    assert [box[0] for _, _, box in detected(rows)] == [2, 4]


def test_other_classes_suppress_nothing_and_a_box_is_of_its_best_class() -> None:
    rows = rows_of((4, 4, 4, 4, 1, 0.5, 0.75, 0.25), (4, 4, 4, 4, 1, 0, 0.5, 0), (4, 4, 4, 4, 1, 0.4, 0, 0.3))
    assert [found[:2] for found in detected(rows)] == [(1, 0.75), (0, 0.4000000059604645)]
    several = [found[:2] for found in detected(rows, multi_label=True)]
    assert several == [(1, 0.75), (0, 0.5), (2, 0.30000001192092896)]
    assert [found[:2] for found in detected(rows, multi_label=True, agnostic=True)] == [(1, 0.75)]
    assert [found[:2] for found in detected(rows, classes=[0, 2])] == [(0, 0.4000000059604645)]


@pytest.mark.parametrize(("iou", "kept"), [(0.0, 1), (0.49, 1), (0.5, 2), (0.51, 2), (1.0, 2)])
def test_only_what_overlaps_by_more_than_the_threshold_is_suppressed(iou: float, kept: int) -> None:
    half = rows_of((4, 4, 4, 4, 1, 0.9), (4, 3, 4, 2, 1, 0.8))
    assert len(detected(half, iou=iou)) == kept


def test_boxes_that_only_touch_do_not_overlap() -> None:
    assert len(detected(rows_of((2, 2, 4, 4, 1, 0.9), (6, 2, 4, 4, 1, 0.8)), iou=0)) == 2


@pytest.mark.parametrize(("confidence", "scores"), [(0.0, [1, 0.5, 2**-20]), (0.5, [1]), (1.0, [])])
def test_only_what_scores_above_the_confidence_is_found(confidence: float, scores: list[float]) -> None:
    rows = rows_of(
        (1, 1, 1, 1, 1, 1), (3, 1, 1, 1, 1, 0.5), (5, 1, 1, 1, 2**-10, 2**-10), (7, 1, 1, 1, 0, 1), (9, 1, 1, 1, 1, 0)
    )
    assert [score for _, score, _ in detected(rows, confidence)] == scores


def test_empty_boxes_overlap_only_with_themselves() -> None:
    rows = rows_of((4, 4, 0, 0, 1, 0.9), (4, 4, 0, 0, 1, 0.8), (4, 4, 0, 2, 1, 0.7), (4, 4, 2, 2, 1, 0.6))
    assert [score for _, score, _ in detected(rows)] == pytest.approx([0.9, 0.7, 0.6])


def test_at_most_300_are_kept_and_they_are_the_best() -> None:
    scores = np.random.default_rng(1).permutation(np.linspace(0.3, 0.9, 400)).astype(np.float32)
    rows = rows_of(*((10.0 * index, 4, 2, 2, 1, score) for index, score in enumerate(scores)))
    assert [score for _, score, _ in detected(rows)] == sorted(scores.tolist(), reverse=True)[:300]


@pytest.mark.parametrize(("better", "found"), [(29_999, 2), (30_000, 1)])
def test_at_most_30000_candidates_are_looked_at(better: int, found: int) -> None:
    rows = np.full((better + 1, 6), [4, 4, 2, 2, 1, 0.9], np.float32)
    rows[0] = [40, 4, 2, 2, 1, 0.5]
    assert len(detected(rows)) == found


# ---- agreement

HERE, BESIDE, FAR = (4, 4, 4, 4), (5, 4, 4, 4), (40, 4, 4, 4)  # HERE and BESIDE overlap by 0.6


def agreement(found: np.ndarray, reference: np.ndarray) -> float | None:
    share: float | None = boxes_agreement(found[None], reference[None])
    return share


@given(rows=several_rows(2))
def test_the_same_outputs_agree_wholly(rows: np.ndarray) -> None:
    assert agreement(rows, rows) == (1.0 if detected(rows) else None)


@given(one=several_rows(2), other=several_rows(2))
def test_an_agreement_is_a_share_that_a_box_far_away_lowers(one: np.ndarray, other: np.ndarray) -> None:
    share = agreement(one, other)
    lower = agreement(np.concatenate([one, rows_of((*FAR, 1, 1, 0))]), other)
    assert lower is not None
    assert share is None or 0 <= share <= 1
    assert lower < share if share else lower == 0


def test_it_counts_what_both_have() -> None:
    here, far, nobody = rows_of((*HERE, 1, 1, 0)), rows_of((*FAR, 1, 1, 0)), rows_of((*HERE, 0, 1, 1))
    assert agreement(here, far) == 0.0
    assert agreement(np.concatenate([here, far]), far) == pytest.approx(2 / 3)
    assert agreement(here, nobody) == agreement(nobody, here) == 0.0
    assert agreement(nobody, nobody) is None
    assert agreement(here, rows_of((*BESIDE, 1, 1, 0))) == 1.0
    assert agreement(here, rows_of((*HERE, 1, 0, 1))) == 0.0  # of the other class


@pytest.mark.parametrize(("height", "share"), [(2.0, 1.0), (1.9, 0.0)])
def test_half_an_overlap_is_enough(height: float, share: float) -> None:
    assert agreement(rows_of((*HERE, 1, 1)), rows_of((4, 4, 4, height, 1, 1))) == share


def test_a_reference_is_used_once() -> None:
    two, one = rows_of((4, 4, 10, 10, 1, 0.8), (4, 7.5, 10, 10, 1, 0.9)), rows_of((4, 5, 10, 10, 1, 1), (0, 0, 0, 0, 0, 0))
    found, reference = (detect(rows, 0.25, 0.6) for rows in (two, one))
    assert (len(found.scores), len(reference.scores)) == (2, 1)
    assert matched(found, reference) == matched(reference, found) == 1


def test_the_best_detection_chooses_first_and_takes_what_it_overlaps_most() -> None:
    found = detect(rows_of((4, 7, 10, 10, 1, 0.9), (4, 4, 10, 10, 1, 0.8)), 0.25, 0.6)
    near_both, near_best = (4, 4.5, 10, 10, 1, 1), (4, 8, 10, 10, 1, 0.9)
    assert matched(found, detect(rows_of(near_both, near_best), 0.25, 0.6)) == 2
    near_both, near_second = (4, 5.4, 10, 10, 1, 1), (4, 0.9, 10, 10, 1, 0.9)  # the second would rather have the first one
    assert matched(found, detect(rows_of(near_both, near_second), 0.25, 0.6)) == 2
    between, below = (4, 6, 10, 10, 1, 1), (4, 9, 10, 10, 1, 0.9)  # the best takes the one between, and leaves none near
    assert matched(found, detect(rows_of(between, below), 0.25, 0.6)) == 1


def test_the_share_is_over_all_pictures() -> None:
    here, far = rows_of((*HERE, 1, 1), (*HERE, 0, 0)), rows_of((*HERE, 1, 1), (*FAR, 1, 1))
    assert boxes_agreement(np.stack([here, far]), np.stack([here, here])) == pytest.approx(2 * 2 / 5)


# ---- defaults

BOX, NEAR, SHY = (50, 50, 20, 20, 0.9, 0.8, 0.1), (52, 50, 20, 20, 0.8, 0.7, 0.1), (90, 90, 10, 10, 0.4, 0.5, 0.1)


def test_what_a_device_shows_is_above_its_confidence_and_not_suppressed() -> None:
    found = shown(rows_of(BOX, NEAR, SHY))
    assert found.classes.tolist() == [0]
    np.testing.assert_allclose(found.boxes, [[40, 40, 60, 60]])
    np.testing.assert_allclose(found.scores, [0.72], rtol=1e-6)
    assert len(detect(rows_of(BOX, NEAR, SHY), 0.15, 0.9).scores) == 3


def test_partners_have_the_class_and_the_place() -> None:
    one, near, other = (shown(rows_of(box)) for box in (BOX, NEAR, (50, 50, 20, 20, 0.9, 0.1, 0.8)))
    assert matched(one, near) == 1
    assert matched(one, other) == 0
    assert matched(one, shown(rows_of(SHY))) == 0
