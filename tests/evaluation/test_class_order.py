"""Answers that are right in another order of the classes, and answers that are just wrong."""

from __future__ import annotations

import numpy as np
import pytest

from bundler.evaluation.class_order import find_class_order


def test_an_order_is_found_among_mistakes() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 10)
    trained = np.array(sorted(range(12), key=str)).argsort()  # 0, 1, 10, 11, 2 …: folders sort as text
    predicted = trained[labels]
    predicted[generator.permutation(120)[:18]] = 5
    order = find_class_order(labels, predicted)
    assert order is not None
    assert order.predicted == dict(enumerate(trained.tolist()))
    assert order.share == pytest.approx(0.85, abs=0.02)


@pytest.mark.parametrize("classes", [2, 4, 10, 100])
def test_answers_at_random_have_no_order(classes: int) -> None:
    generator = np.random.default_rng(1)
    labels = np.repeat(np.arange(classes), 6)
    for _ in range(20):
        assert find_class_order(labels, generator.integers(0, classes, len(labels))) is None
    assert find_class_order(labels, np.zeros_like(labels)) is None


def test_right_answers_and_too_few_say_nothing() -> None:
    labels = np.repeat(np.arange(4), 10)
    assert find_class_order(labels, labels) is None
    assert find_class_order(np.arange(8), np.arange(8)[::-1]) is None
