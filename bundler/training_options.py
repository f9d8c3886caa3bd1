"""TrainingOptions: the options of quantization-aware training."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CLASSIFIERS", "DETECTORS", "TrainingOptions"]


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Options of SGD with momentum and cosine annealing of the learning rate.

    The defaults follow torchvision's training of quantized models (references/classification/train_quantization.py), in which
    BatchNorm statistics are frozen after 3/8 of the epochs, and observers after half of them.

    Args:
        epochs: number of epochs.
        batch_size: in images.
        learning_rate: of the first step; it falls to 0.
        momentum: of SGD.
        weight_decay: of weights; biases and BatchNorms have none.
        statistics_share: share of the epochs after which BatchNorm statistics are frozen; 0 freezes them from the start.
        observers_share: share of the epochs after which observers are frozen.
        teacher_share: share of the loss that compares outputs with those of the float network (knowledge distillation).
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
        """Number of epochs in which BatchNorm statistics are updated."""
        return max(round(self.epochs * self.statistics_share), 1) if self.statistics_share else 0

    @property
    def observers_epochs(self) -> int:
        """Number of epochs in which observers record activation ranges."""
        return max(round(self.epochs * self.observers_share), 1)


CLASSIFIERS = TrainingOptions()
# Detectors have large inputs and small batches, whose statistics would differ too much from those of the float network.
DETECTORS = TrainingOptions(batch_size=8, learning_rate=1e-4, statistics_share=0.0)
