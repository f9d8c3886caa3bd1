"""Top-1 and top-5 accuracy of classifiers on labelled images, and the drop from FP32 to INT8."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from bundler import console
from bundler.data.labelled_images import LabelledImages
from bundler.graphs.exported_graph import ExportedGraph
from bundler.graphs.host_runs import runnable
from bundler.manifest import AccuracyRecord
from bundler.targets import OptimizationLevel

__all__ = ["ClassifierTest", "Interval", "label_ranks", "paired_difference", "prepare_classifier_test", "wilson"]

Interval = tuple[float, float]
Right = NDArray[np.bool_]
Ranks = NDArray[np.int64]

BATCH = 16
TOP = 5
Z = NormalDist().inv_cdf(0.975)  # of a two-sided 95 % interval


@dataclass(frozen=True, kw_only=True)
class ClassifierTest:
    """Labelled images with the results of FP32.

    Args:
        pictures: the images.
        level: ONNX Runtime's optimization level.
        fp32_ranks: number of classes with a higher score than the labelled one, int64 [images].
        fp32_predicted: predicted class, int64 [images].
    """

    pictures: LabelledImages
    level: OptimizationLevel
    fp32_ranks: Ranks
    fp32_predicted: NDArray[np.int64]

    @property
    def fp32(self) -> AccuracyRecord:
        """The accuracy of FP32."""
        return _record(self.fp32_ranks, None, self.pictures)

    def measure(self, graph: ExportedGraph) -> AccuracyRecord:
        """Return the accuracy of an INT8 graph, and the drop from FP32.

        Raises:
            DataError: an image cannot be read.
        """
        return _record(_answers(graph, self.pictures, self.level)[0], self.fp32_ranks, self.pictures)


def prepare_classifier_test(fp32: ExportedGraph, images: LabelledImages, *, level: OptimizationLevel) -> ClassifierTest:
    """Run the FP32 graph on all images.

    Raises:
        DataError: an image cannot be read.
    """
    ranks, predicted = _answers(fp32, images, level)
    return ClassifierTest(pictures=images, level=level, fp32_ranks=ranks, fp32_predicted=predicted)


def _answers(graph: ExportedGraph, images: LabelledImages, level: OptimizationLevel) -> tuple[Ranks, NDArray[np.int64]]:
    run = runnable(graph, level)
    ranks, predicted = [], []
    with console.progress(f"measuring {graph.path.stem}", len(images)) as advance:
        for batch, labels in images.batches(BATCH):
            logits = run(batch)
            ranks.append(label_ranks(logits, labels))
            predicted.append(logits.argmax(1))
            advance(len(batch))
    return np.concatenate(ranks), np.concatenate(predicted)


def label_ranks(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Ranks:
    """Return how many classes have a higher score than the labelled one, int64 [N]; ties are ordered by class index.

    `logits` are float32 [N, classes], `labels` class indices int64 [N]. Rank 0 is a right prediction.
    """
    own = logits[np.arange(len(labels)), labels][:, None]
    earlier = (logits == own) & (np.arange(logits.shape[1]) < labels[:, None])
    ranks: Ranks = ((logits > own) | earlier).sum(1)
    return ranks


def _record(ranks: Ranks, reference: Ranks | None, images: LabelledImages) -> AccuracyRecord:
    right = ranks == 0
    drop, interval = (None, None) if reference is None else paired_difference(reference == 0, right)
    return AccuracyRecord(
        pictures=len(right),
        data_sha256=images.sha256,
        top1=float(right.mean()),
        top1_interval=wilson(int(right.sum()), len(right)),
        top5=float((ranks < TOP).mean()) if len(images.classes) > TOP else None,
        drop=drop,
        drop_interval=interval,
    )


def wilson(right: int, count: int) -> Interval:
    """Return the 95 % score interval of the proportion right / count (Wilson 1927)."""
    share = right / count
    middle = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count)) / (1 + Z * Z / count)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def paired_difference(before: Right, after: Right) -> tuple[float, Interval]:
    """Return the drop in accuracy on the same images, and its 95 % interval.

    Agresti & Min 2005, "Simple improved confidence intervals for comparing matched proportions": 0.5 is added to each of the
    four counts of images on which the two models are right or wrong.
    """
    count, lost, won = len(before) + 2, int((before & ~after).sum()) + 0.5, int((after & ~before).sum()) + 0.5
    middle = (lost - won) / count
    half = Z * math.sqrt(lost + won - (lost - won) ** 2 / count) / count
    return (int(before.sum()) - int(after.sum())) / len(before), (middle - half, middle + half)
