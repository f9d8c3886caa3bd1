"""SQNR and agreement of outputs, and which outputs can reveal an error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bundler.device.numerics import decibels, informative_problem, sqnr_db, top1_agreement

seeds = st.integers(0, 2**32 - 1)


def numbers(seed: int, shape: tuple[int, ...] = (4, 10)) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def doubles(seed: int) -> NDArray[Any]:
    """The same numbers in float64, for ratios that are compared more closely than float32 rounds."""
    return numbers(seed).astype(np.float64)


@given(seeds)
def test_equal_outputs_have_no_noise(seed: int) -> None:
    assert sqnr_db(numbers(seed), numbers(seed)) == math.inf


def test_known_ratios() -> None:
    reference = np.array([[3.0, 4.0]], np.float32)
    assert sqnr_db(reference, reference * np.float32(0.5)) == pytest.approx(20 * math.log10(2))
    assert sqnr_db(reference, reference * 0) == 0
    assert sqnr_db(reference * 0, reference) == -math.inf


@given(seeds, st.integers(1, 5))
def test_noise_ten_times_smaller_is_twenty_decibels_better(seed: int, tenths: int) -> None:
    reference, noise = doubles(seed), doubles(seed + 1)
    coarse = sqnr_db(reference, reference + noise)
    assert sqnr_db(reference, reference + noise / 10**tenths) == pytest.approx(coarse + 20 * tenths, abs=1e-6)  # in doubles


@given(seeds, st.floats(1e-3, 1e3))
def test_the_ratio_has_no_unit(seed: int, factor: float) -> None:
    reference, outputs = doubles(seed), doubles(seed + 1)
    scaled: tuple[NDArray[Any], NDArray[Any]] = (reference * factor, outputs * factor)
    assert sqnr_db(*scaled) == pytest.approx(sqnr_db(reference, outputs), abs=1e-6)  # in doubles


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_top1_agreement_is_the_share_of_equal_highest_classes(same: list[bool]) -> None:
    reference = np.eye(10, dtype=np.float32)[np.arange(len(same)) % 10]
    outputs = np.where(np.array(same)[:, None], reference, np.roll(reference, 1, axis=1))
    assert top1_agreement(reference, outputs) == pytest.approx(sum(same) / len(same))


IMAGES = numbers(0)


@pytest.mark.parametrize(
    ("outputs", "problem"),
    [
        (IMAGES, ""),
        (IMAGES * np.float32(0.01), ""),
        (IMAGES * np.float32(1e-5), "almost zero"),
        (np.zeros((4, 10), np.float32), "almost zero"),
        (np.repeat(IMAGES[:1], 4, axis=0), "same for every image"),
        (np.repeat(IMAGES[:, :1], 10, axis=1), "same for every class"),
        (np.where(IMAGES > 1, np.float32("nan"), IMAGES), "not finite"),
        (np.where(IMAGES > 1, np.float32("inf"), IMAGES), "not finite"),
    ],
)
def test_what_would_hide_an_error(outputs: NDArray[np.float32], problem: str) -> None:
    assert (IMAGES > 1).any()
    found = informative_problem(outputs)
    assert problem in found
    assert bool(found) == bool(problem)


def test_of_detections_the_worse_of_boxes_and_scores_counts() -> None:
    """Pixels are a thousand times larger than probabilities, and would hide any noise of those."""
    reference = numbers(0, (2, 6, 9)) * np.array([100] * 4 + [0.5] * 5, np.float32)
    noisy_scores, noisy_boxes = reference.copy(), reference.copy()
    noisy_scores[..., 4:] *= np.float32(0.5)
    noisy_boxes[..., :4] *= np.float32(0.5)
    assert sqnr_db(reference, noisy_scores) == pytest.approx(20 * math.log10(2))
    assert sqnr_db(reference, noisy_boxes) == pytest.approx(20 * math.log10(2))
    assert sqnr_db(reference, reference) == math.inf


def test_boxes_in_their_cells_reveal_nothing_of_dead_scores() -> None:
    detections = numbers(0, (4, 6, 9))
    assert informative_problem(detections) == ""
    detections[..., 4:] = 0.5
    assert informative_problem(detections) == "the outputs are the same for every box"
    detections[..., 4:] = numbers(1, (1, 6, 5))
    assert informative_problem(detections) == "the outputs are the same for every image"


def test_the_scores_of_a_dead_detector_differ_by_channel_and_not_by_box() -> None:
    """Objectness and classes have biases of their own: every box scores the same, and yet not every channel."""
    detections = numbers(0, (4, 6, 9))
    detections[..., 4:] = numbers(1, (4, 1, 5))
    assert informative_problem(detections) == "the outputs are the same for every box"


def test_boxes_without_coordinates_are_a_problem() -> None:
    detections = numbers(0, (4, 6, 9))
    detections[..., :4] = 0
    assert informative_problem(detections) == "the coordinates of all boxes are zero"


def test_a_single_image_is_not_compared_with_others() -> None:
    assert informative_problem(IMAGES[:1]) == informative_problem(numbers(0, (1, 6, 9))) == ""
    assert informative_problem(np.ones((1, 10), np.float32)) == "the outputs are the same for every class"


def test_decibels_of_powers() -> None:
    assert decibels(100.0, 1.0) == 20
    assert (decibels(0.0, 0.0), decibels(1.0, 0.0), decibels(0.0, 1.0)) == (math.inf, math.inf, -math.inf)
