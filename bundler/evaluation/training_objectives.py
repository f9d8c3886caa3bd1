"""Objectives of quantization-aware training: labels for classifiers, distillation from FP32 for detectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bundler.data.labelled_boxes import DetectionImages
from bundler.device.detections import Detections, agreeing, shown
from bundler.evaluation.accuracy import AccuracyTest
from bundler.evaluation.detection import DetectorTest
from bundler.models.detector import BOX, QuantizableDetector
from bundler.quantization.training import ImageBatches
from bundler.training_options import TrainingOptions

__all__ = ["Classification", "Detection", "training_objective"]


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Cross-entropy with the labels, and distillation from a float teacher (Hinton et al. 2015, arXiv:1503.02531).

    The score is top-1 accuracy.

    Args:
        teacher: in eval mode.
        teacher_share: of the loss, from 0 to 1.
        validation: labelled images for the score.
        batch_size: for the score.
    """

    teacher: nn.Module
    teacher_share: float
    validation: ImageBatches
    batch_size: int
    measure: ClassVar[str] = "top-1"

    def loss(self, model: nn.Module, images: Tensor, *labels: Tensor) -> tuple[Tensor, float]:
        (classes,) = labels
        with torch.inference_mode():
            taught = nn.functional.log_softmax(self.teacher(images), 1)
        logits = model(images)
        student = nn.functional.log_softmax(logits, 1)
        distillation = nn.functional.kl_div(student, taught.clone(), reduction="batchmean", log_target=True)
        loss = (1 - self.teacher_share) * nn.functional.cross_entropy(logits, classes) + self.teacher_share * distillation
        return loss, float((logits.argmax(1) == classes).float().mean())

    def score(self, model: nn.Module) -> float:
        right = 0
        for images, *labels in self.validation.batches(self.batch_size):
            right += int((model(torch.from_numpy(images)).argmax(1).numpy() == labels[0]).sum())
        return right / len(self.validation)


@dataclass(frozen=True, kw_only=True)
class Detection:
    """Distillation from a float teacher, without labels.

    The loss is the error of all scores relative to their power, plus the error of the boxes relative to their sizes, weighted
    by the teacher's scores (Mehta, Ozturk 2018, arXiv:1805.06361). The score is the share of boxes that agree with FP32's.

    Args:
        teacher: in eval mode.
        validation: images for the score.
        seen: detections of FP32 in each validation image.
    """

    teacher: QuantizableDetector
    validation: DetectionImages
    seen: Sequence[Detections]
    measure: ClassVar[str] = "boxes as FP32's"

    def loss(self, model: nn.Module, images: Tensor, *_labels: Tensor) -> tuple[Tensor, None]:
        with torch.inference_mode():
            taught = self.teacher(images).clone()
        outputs = model(images)
        rows = self.teacher.decode(outputs) if model.training else outputs
        wanted = taught[..., 4:5] * taught[..., BOX:]
        scores = (rows[..., 4:5] * rows[..., BOX:] - wanted).square().sum() / wanted.square().sum()
        sure = wanted.amax(2, keepdim=True)
        boxes = (sure * ((rows[..., :4] - taught[..., :4]) / taught[..., 2:4].repeat(1, 1, 2)).square()).sum() / sure.sum()
        return scores + boxes, None

    def score(self, model: nn.Module) -> float:
        same = count = 0
        for image, reference in zip(self.validation, self.seen, strict=True):
            (rows,) = model(torch.from_numpy(image.pixels[None])).numpy()
            agreed, both = agreeing(shown(rows), reference)
            same, count = same + agreed, count + both
        return same / count


def training_objective(test: AccuracyTest, teacher: nn.Module, recipe: TrainingOptions) -> Classification | Detection:
    """Return what a network learns whose accuracy is measured by `test`; `teacher` is the float model in eval mode.

    Raises:
        TypeError: the test is of detections, and the teacher is no detector.
    """
    if not isinstance(test, DetectorTest):
        share = recipe.teacher_share
        return Classification(teacher=teacher, teacher_share=share, validation=test.pictures, batch_size=recipe.batch_size)
    if not isinstance(teacher, QuantizableDetector):
        msg = f"detections need a detector as teacher, not a {type(teacher).__name__}"
        raise TypeError(msg)
    return Detection(teacher=teacher, validation=test.pictures, seen=test.seen.shown)
