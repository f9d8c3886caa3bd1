"""Mean average precision as COCO defines it (Lin et al. 2014), computed by COCO's own pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from bundler.data.labels import Labels
from bundler.device.detections import Detections

__all__ = ["mean_average_precision"]


def mean_average_precision(found: Sequence[Detections], truth: Sequence[Labels]) -> tuple[float, float]:
    """Return mAP50-95 and mAP50, from 0 to 1, of the detections `found` in each image for the labels `truth`.

    The mean is over the labelled classes. Up to 100 detections per image and class count; those in a crowd are ignored.
    """
    images = [{"id": index} for index in range(len(truth))]
    categories = [{"id": int(kind)} for kind in np.unique(np.concatenate([labels.classes[labels.counted] for labels in truth]))]
    counted = np.concatenate([labels.counted for labels in truth]).tolist()
    objects = [
        {"id": number, "image_id": index, "category_id": kind, "bbox": box, "area": box[2] * box[3], "iscrowd": int(not counts)}
        # pycocotools treats the identifier 0 as no match
        for number, ((index, kind, box), counts) in enumerate(zip(_each(truth), counted, strict=True), start=1)
    ]
    scores = np.concatenate([one.scores for one in found])
    if not len(scores):
        return 0.0, 0.0
    boxes = _each(found)
    detections = np.array(
        [(index, *box, score, kind) for (index, kind, box), score in zip(boxes, scores.tolist(), strict=True)]
    )
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints progress to stdout, which is for results
        labelled = COCO()
        labelled.dataset = {"images": images, "annotations": objects, "categories": categories}  # type: ignore[typeddict-item]
        labelled.createIndex()
        evaluation = COCOeval(labelled, labelled.loadRes(detections), "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision: Any = evaluation.eval["precision"][:, :, :, 0, -1]  # by IoU, recall and class
    return float(precision.mean()), float(precision[0].mean())


def _each(images: Sequence[Labels | Detections]) -> list[tuple[int, int, list[float]]]:
    """Return the image index, class, and box (left, top, width, height) of each object."""
    return [
        (index, int(kind), [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()])
        for index, one in enumerate(images)
        for kind, box in zip(one.classes, one.boxes, strict=True)
    ]
