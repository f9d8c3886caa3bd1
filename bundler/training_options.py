"""TrainingRecipe: how a network is trained for INT8."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CLASSIFIERS", "DETECTORS", "TrainingRecipe"]


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """SGD with momentum and a learning rate that falls like a cosine; shares are of the epochs, but the teacher's of the loss.

    As torchvision trains its quantized models (references/classification/train_quantization.py): BatchNorm statistics are
    frozen after three eighths of the epochs, observers after half.
    """

    epochs: int = 8
    batch_size: int = 32
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    statistics_share: float = 3 / 8
    observers_share: float = 1 / 2
    teacher_share: float = 0.5

    @property
    def statistics_epochs(self) -> int:
        """For how many epochs BatchNorm statistics follow the pictures."""
        return max(round(self.epochs * self.statistics_share), 1) if self.statistics_share else 0

    @property
    def observers_epochs(self) -> int:
        """For how many epochs the ranges of activations do."""
        return max(round(self.epochs * self.observers_share), 1)


CLASSIFIERS = TrainingRecipe()
# Large inputs make small batches, whose statistics would not be those that the teacher works with.
DETECTORS = TrainingRecipe(batch_size=8, learning_rate=1e-4, statistics_share=0.0)
