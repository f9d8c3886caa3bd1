"""Detections: the device runner's own, with nothing left beside its template."""

from __future__ import annotations

import numpy as np

from bundler.device.detections import detect, matched, shown
from bundler.resources import resource


def rows(*boxes: tuple[float, ...]) -> np.ndarray:
    return np.array(boxes, np.float32)


BOX, NEAR, SHY = (50, 50, 20, 20, 0.9, 0.8, 0.1), (52, 50, 20, 20, 0.8, 0.7, 0.1), (90, 90, 10, 10, 0.4, 0.5, 0.1)


def test_what_a_device_shows_is_above_its_confidence_and_not_suppressed() -> None:
    found = shown(rows(BOX, NEAR, SHY))
    assert found.classes.tolist() == [0]
    np.testing.assert_allclose(found.boxes, [[40, 40, 60, 60]])
    np.testing.assert_allclose(found.scores, [0.72], rtol=1e-6)
    assert len(detect(rows(BOX, NEAR, SHY), 0.15, 0.9).scores) == 3


def test_partners_have_the_class_and_the_place() -> None:
    one, near, other = (shown(rows(box)) for box in (BOX, NEAR, (50, 50, 20, 20, 0.9, 0.1, 0.8)))
    assert matched(one, near) == 1
    assert matched(one, other) == 0
    assert matched(one, shown(rows(SHY))) == 0


def test_reading_the_template_leaves_no_bytecode_beside_it() -> None:
    shown(rows(BOX))
    assert not (resource("templates") / "__pycache__").exists()
