"""Accuracy as a gate: how often each mode is right on labelled pictures, and whether INT8 loses more than is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from bundler import console
from bundler.errors import AccuracyError
from bundler.export.graph import ExportedGraph
from bundler.export.reference import runnable
from bundler.labelled_pictures import LabelledPictures
from bundler.manifest import AccuracyRecord
from bundler.models.specs import Mode
from bundler.targets import OptimizationLevel

__all__ = [
    "AccuracyTest",
    "Interval",
    "fp32_accuracy",
    "lost_points",
    "measure_accuracy",
    "paired_difference",
    "prepare_test",
    "require_accuracy",
    "wilson",
]

Interval = tuple[float, float]
Right = NDArray[np.bool_]
Ranks = NDArray[np.int64]

BATCH = 16
TOP = 5
Z = NormalDist().inv_cdf(0.975)  # both sides of a 95 % interval


@dataclass(frozen=True, kw_only=True)
class AccuracyTest:
    """Labelled pictures, and for how many classes FP32 scores each of them higher than the right one."""

    pictures: LabelledPictures
    level: OptimizationLevel
    fp32: Ranks


def prepare_test(fp32: ExportedGraph, pictures: LabelledPictures, *, level: OptimizationLevel) -> AccuracyTest:
    """Run every picture through the float graph, so that others can be compared with it.

    Raises:
        DataError: a picture cannot be read.
    """
    console.step(f"Measuring accuracy on {len(pictures)} pictures of {len(pictures.classes)} classes")
    return AccuracyTest(pictures=pictures, level=level, fp32=_ranks_of(fp32, pictures, level))


def fp32_accuracy(test: AccuracyTest) -> AccuracyRecord:
    """Return how often FP32 is right."""
    return _record(test.fp32, None, test.pictures)


def measure_accuracy(test: AccuracyTest, graph: ExportedGraph) -> AccuracyRecord:
    """Run every picture through an INT8 graph; return how often it is right, and how much less often than FP32.

    Raises:
        DataError: a picture cannot be read.
    """
    return _record(_ranks_of(graph, test.pictures, test.level), test.fp32, test.pictures)


def _ranks_of(graph: ExportedGraph, pictures: LabelledPictures, level: OptimizationLevel) -> Ranks:
    run = runnable(graph, level)
    ranks = []
    with console.progress(f"measuring {graph.path.stem}", len(pictures)) as advance:
        for batch, labels in pictures.batches(BATCH):
            ranks.append(_ranks(run(batch), labels))
            advance(len(batch))
    return np.concatenate(ranks)


def require_accuracy(records: Mapping[Mode, AccuracyRecord], max_drop: float) -> None:
    """Refuse INT8 modes whose top-1 fell by more than `max_drop` percentage points.

    Raises:
        AccuracyError: with each such mode's figures.
    """
    lost = [mode for mode, record in sorted(records.items()) if record.drop is not None and lost_points(record) > max_drop]
    if lost:
        raise AccuracyError(
            "; ".join(f"{mode} {records[mode]}" for mode in lost) + f"; {max_drop:g} points are allowed",
            next_step="Calibrate with more pictures like those of the device (--calibration DIR, --calibration-pictures N), "
            "or train for it: --mode int8-qat.",
        )


def lost_points(record: AccuracyRecord) -> float:
    """Return how many percentage points of top-1 an INT8 mode lost to FP32, as they are written: 0.07 is 7, not a bit more."""
    assert record.drop is not None  # noqa: S101  it is not FP32's own
    return round(100 * record.drop, 6)


def _ranks(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Ranks:
    """Return how many classes score higher than the right one; of equal scores, the class of the lower index counts first."""
    own = logits[np.arange(len(labels)), labels][:, None]
    earlier = (logits == own) & (np.arange(logits.shape[1]) < labels[:, None])
    ranks: Ranks = ((logits > own) | earlier).sum(1)
    return ranks


def _record(ranks: Ranks, reference: Ranks | None, pictures: LabelledPictures) -> AccuracyRecord:
    right = ranks == 0
    drop, interval = (None, None) if reference is None else paired_difference(reference == 0, right)
    return AccuracyRecord(
        pictures=len(right),
        data_sha256=pictures.sha256,
        top1=float(right.mean()),
        top1_interval=wilson(int(right.sum()), len(right)),
        top5=float((ranks < TOP).mean()) if len(pictures.classes) > TOP else None,
        drop=drop,
        drop_interval=interval,
    )


def wilson(right: int, count: int) -> Interval:
    """Return the 95 % score interval of a share (Wilson 1927)."""
    share = right / count
    middle = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count)) / (1 + Z * Z / count)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def paired_difference(before: Right, after: Right) -> tuple[float, Interval]:
    """Return by how much the share of right answers fell on the same pictures, and its 95 % interval.

    Agresti & Min 2005, "Simple improved confidence intervals for comparing matched proportions": half a picture is added to
    each of the four ways in which two models can be right or wrong.
    """
    count, lost, won = len(before) + 2, int((before & ~after).sum()) + 0.5, int((after & ~before).sum()) + 0.5
    middle = (lost - won) / count
    half = Z * math.sqrt(lost + won - (lost - won) ** 2 / count) / count
    return (int(before.sum()) - int(after.sum())) / len(before), (middle - half, middle + half)
