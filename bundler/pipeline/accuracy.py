"""Accuracy as a gate: how often each mode is right on labelled pictures, and whether INT8 loses more than is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping
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

__all__ = ["Interval", "measure_accuracy", "paired_difference", "require_accuracy", "wilson"]

Interval = tuple[float, float]
Right = NDArray[np.bool_]

BATCH = 16
TOP = 5
Z = NormalDist().inv_cdf(0.975)  # both sides of a 95 % interval


def measure_accuracy(
    graphs: Mapping[Mode, ExportedGraph], pictures: LabelledPictures, *, level: OptimizationLevel
) -> Mapping[Mode, AccuracyRecord]:
    """Run every picture through every graph, FP32 among them, and count how often each is right.

    Raises:
        DataError: a picture cannot be read.
    """
    runs = {mode: runnable(graph, level) for mode, graph in graphs.items()}
    ranks: dict[Mode, list[NDArray[np.int64]]] = {mode: [] for mode in graphs}
    console.step(f"Measuring accuracy on {len(pictures)} pictures of {len(pictures.classes)} classes")
    with console.progress("measuring", len(pictures)) as advance:
        for batch, labels in pictures.batches(BATCH):
            for mode, run in runs.items():
                ranks[mode].append(_ranks(run(batch), labels))
            advance(len(batch))
    by_mode = {mode: np.concatenate(parts) for mode, parts in ranks.items()}
    digest = pictures.sha256
    records = {
        mode: _record(rank, None if mode == "fp32" else by_mode["fp32"], digest, classes=len(pictures.classes))
        for mode, rank in by_mode.items()
    }
    for mode, record in sorted(records.items()):
        console.detail(f"{mode}: {record}")
    return records


def require_accuracy(records: Mapping[Mode, AccuracyRecord], max_drop: float) -> None:
    """Refuse INT8 modes whose top-1 fell by more than `max_drop` percentage points.

    Raises:
        AccuracyError: with each such mode's figures.
    """
    lost = [mode for mode, record in sorted(records.items()) if record.drop is not None and 100 * record.drop > max_drop]
    if lost:
        raise AccuracyError(
            "; ".join(f"{mode} {records[mode]}" for mode in lost) + f"; {max_drop:g} points are allowed",
            next_step="Calibrate with more pictures like those of the device (--calibration DIR, --calibration-pictures N), "
            "or train for it: --mode int8-qat.",
        )


def _ranks(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many classes score higher than the right one; of equal scores, the class of the lower index counts first."""
    own = logits[np.arange(len(labels)), labels][:, None]
    earlier = (logits == own) & (np.arange(logits.shape[1]) < labels[:, None])
    ranks: NDArray[np.int64] = ((logits > own) | earlier).sum(1)
    return ranks


def _record(ranks: NDArray[np.int64], reference: NDArray[np.int64] | None, digest: str, *, classes: int) -> AccuracyRecord:
    right = ranks == 0
    drop, interval = (None, None) if reference is None else paired_difference(reference == 0, right)
    return AccuracyRecord(
        pictures=len(right),
        data_sha256=digest,
        top1=float(right.mean()),
        top1_interval=wilson(int(right.sum()), len(right)),
        top5=float((ranks < TOP).mean()) if classes > TOP else None,
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
    return float(before.mean() - after.mean()), (middle - half, middle + half)
