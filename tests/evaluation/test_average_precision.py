"""Mean average precision: figures that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bundler.data.labelled_boxes import Labels
from bundler.device.detections import Detections
from bundler.evaluation.average_precision import mean_average_precision

BOX = (0.1, 0.1, 0.5, 0.5)
AWAY = (0.6, 0.6, 0.9, 0.9)
NARROW = (0.1, 0.1, 0.5, 0.39)  # an IoU of 0.725 with the first: good enough for 5 of the 10 thresholds
Box = tuple[float, float, float, float]


def labels(*objects: tuple[int, Box]) -> Labels:
    return Labels(
        classes=np.array([kind for kind, _ in objects], np.int64), boxes=np.array([box for _, box in objects]).reshape(-1, 4)
    )


def found(*objects: tuple[int, Box, float]) -> Detections:
    own = labels(*(item[:2] for item in objects))
    return Detections(own.classes, np.array([item[2] for item in objects]), own.boxes)


@pytest.mark.parametrize(
    ("seen", "truth", "expected"),
    [
        ([found((0, BOX, 0.9))], [labels((0, BOX))], (1, 1)),
        ([found((1, BOX, 0.9))], [labels((0, BOX))], (0, 0)),
        ([found((0, AWAY, 0.9))], [labels((0, BOX))], (0, 0)),
        ([found()], [labels((0, BOX))], (0, 0)),
        ([found((0, NARROW, 0.9))], [labels((0, BOX))], (0.5, 1)),
        # A wrong one that is surer halves precision at every recall; one that is less sure costs nothing.
        ([found((0, AWAY, 0.9), (0, BOX, 0.8))], [labels((0, BOX))], (0.5, 0.5)),
        ([found((0, BOX, 0.9), (0, AWAY, 0.8))], [labels((0, BOX))], (1, 1)),
        # Half of the objects: precision 1 up to recall 0.5, which is 51 of COCO's 101 points.
        ([found((0, BOX, 0.9))], [labels((0, BOX), (0, AWAY))], (51 / 101, 51 / 101)),
        # One class is found and one is not; an image without objects where nothing is seen changes nothing.
        ([found((0, BOX, 0.9)), found()], [labels((0, BOX), (2, AWAY)), labels()], (0.5, 0.5)),
        # The same box in another image is no match.
        ([found(), found((0, BOX, 0.9))], [labels((0, BOX)), labels((0, AWAY))], (0, 0)),
    ],
)
def test_worked_examples(seen: list[Detections], truth: list[Labels], expected: tuple[float, float]) -> None:
    assert mean_average_precision(seen, truth) == pytest.approx(expected, abs=1e-9)


def test_what_is_found_in_a_crowd_counts_neither_for_nor_against() -> None:
    truth = Labels(classes=np.array([0, 0, 5]), boxes=np.array([BOX, AWAY, AWAY]), crowd=np.array([False, True, True]))
    inside = (0.6, 0.6, 0.7, 0.7)
    assert mean_average_precision([found((0, inside, 0.99), (0, BOX, 0.9), (5, BOX, 0.9))], [truth]) == pytest.approx((1, 1))


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    mean_average_precision([found((0, BOX, 0.9))], [labels((0, BOX))])
    assert capfd.readouterr() == ("", "")
