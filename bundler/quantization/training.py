"""Quantization-aware training (QAT) of a prepared network, which can be interrupted at any time and resumed."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.ao.nn.intrinsic.qat import freeze_bn_stats
from torch.ao.quantization import disable_observer, enable_observer

import bundler
from bundler import console
from bundler.errors import TrainingError
from bundler.quantization.deferred_signals import DeferredSignals
from bundler.quantization.training_checkpoint import read_checkpoint, write_checkpoint
from bundler.quantization.training_numerics import training_numerics
from bundler.training_options import TrainingOptions

__all__ = ["ImageBatches", "Objective", "TrainingProgress", "TrainingResult", "train"]

SAVE_SECONDS = 120.0  # interval of the checkpoints within an epoch
CALIBRATION_BATCHES = 8  # before the first step, so that the training starts with suitable ranges
THEN = " then "  # separates the settings of a machine before and after a training was resumed
MAX_GRADIENT_NORM = 1.0  # of all gradients together; fake quantization at the end of its range can give large gradients


class ImageBatches(Protocol):
    """Images in batches, normalized float32 [N, 3, H, W], with their labels if they have any.

    `batches` shuffles them if it is given a seed, and leaves out the first `skip` batches. `sha256` identifies the data.
    """

    def __len__(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    def batches(
        self, size: int, *, seed: int | None = None, skip: int = 0
    ) -> Iterator[tuple[NDArray[np.float32], *tuple[NDArray[Any], ...]]]: ...


class Objective(Protocol):
    """What is minimized, and the score by which the best epoch is chosen."""

    @property
    def validation(self) -> ImageBatches:
        """The images that the score is measured on; they are not trained on."""

    def loss(self, model: nn.Module, images: Tensor, *labels: Tensor) -> tuple[Tensor, float | None]:
        """Return the loss of a batch, a scalar, and the batch's score from 0 to 1, or None if it has none."""

    def score(self, model: nn.Module) -> float:
        """Return the score of a model in eval mode on the validation images, from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """The progress of a training after a step.

    Args:
        epoch: from 1.
        step: within the epoch, from 1.
        steps: per epoch.
        loss: mean of the epoch so far.
        score: mean of the epoch so far, or that of the last epoch if batches have none; from 0 to 1.
    """

    epoch: int
    step: int
    steps: int
    loss: float
    score: float


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The result of a training.

    Args:
        pictures: number of images trained on.
        validation_pictures: number of images that the scores were measured on.
        score_before: before the first epoch.
        scores: after each epoch.
        best_epoch: whose weights the network has, from 1; 0 for those from before the training.
        numerics: settings of the machine on which the last bits of the weights depend.
    """

    pictures: int
    validation_pictures: int
    score_before: float
    scores: tuple[float, ...]
    best_epoch: int
    numerics: Mapping[str, str]


def train(
    prepared: nn.Module,
    data: ImageBatches,
    objective: Objective,
    options: TrainingOptions,
    *,
    checkpoint: Path,
    seed: int,
    report: Callable[[TrainingProgress], None],
    on_epoch: Callable[[int, float], None] = lambda _epoch, _score: None,
) -> TrainingResult:
    """Train a network in place; it ends in eval mode with the weights of the best epoch.

    A checkpoint is written after every epoch, every SAVE_SECONDS, and on an interrupt, always of the state between two steps: a
    signal during a step is handled after it. If `checkpoint` exists, the training resumes from it and ends with the same
    weights as an uninterrupted one. A checkpoint that is damaged, or of another training or version, is renamed, and the
    training starts from the beginning. Torch's global random state and number of threads are restored at the end.

    Args:
        prepared: the result of `load_fuse_prepare` for QAT, in train mode.
        data: the images to train on.
        objective: loss and score.
        options: epochs, batch size and learning rate.
        checkpoint: the file to resume from and to write.
        seed: of the order of the images and of torch's random numbers.
        report: called after every step.
        on_epoch: called after every epoch with its number, from 1 (0: before the first), and the score.

    Raises:
        TrainingError: the checkpoint cannot be read or renamed, or the loss is not finite.
    """
    with torch.random.fork_rng(devices=[]), _restored_threads():
        torch.manual_seed(seed)
        steps = math.ceil(len(data) / options.batch_size)
        optimizer = torch.optim.SGD(_groups(prepared, options), lr=options.learning_rate, momentum=options.momentum)
        state = _State(fingerprint=_fingerprint(prepared, data, objective.validation, options, seed))
        if state.load(checkpoint, prepared, optimizer):
            console.detail(f"resuming from {checkpoint}: epoch {state.epoch + 1}, after {state.step} of {steps} steps")
        else:
            _calibrate(prepared, data, options)
            state.record_epoch(prepared, _score(prepared, objective, frozen=False), epoch=0)
            on_epoch(0, state.scores[0])
        timer = _SaveTimer()
        with DeferredSignals() as signals:
            try:
                while state.epoch < options.epochs:
                    _set_modes(prepared, state.epoch, options)
                    order = seed * 1_000_003 + state.epoch
                    for batch in data.batches(options.batch_size, seed=order, skip=state.step):
                        _set_learning_rate(optimizer, options, (state.epoch * steps + state.step) / (options.epochs * steps))
                        with state.changing():
                            loss, score = _step(prepared, objective, optimizer, *map(torch.from_numpy, batch))
                            state.record_step(loss, score, len(batch[0]))
                        report(state.progress(steps))
                        if timer.is_due():
                            state.save(checkpoint, prepared, optimizer)
                        signals.deliver()
                    with signals.immediate():
                        reached = _score(prepared, objective, frozen=state.epoch + 1 > options.observers_epochs)
                    with state.changing():
                        state.record_epoch(prepared, reached, epoch=state.epoch + 1)
                        state.next_epoch()
                    on_epoch(state.epoch, state.scores[-1])
                    state.save(checkpoint, prepared, optimizer)
                    signals.deliver()
            except KeyboardInterrupt:
                state.save(checkpoint, prepared, optimizer)
                raise
    prepared.load_state_dict(state.best)
    prepared.eval()
    return TrainingResult(
        pictures=len(data),
        validation_pictures=len(objective.validation),
        score_before=state.scores[0],
        scores=tuple(state.scores[1:]),
        best_epoch=state.best_epoch,
        numerics=state.numerics,
    )


@contextmanager
def _restored_threads() -> Iterator[None]:
    """Restore torch's number of threads, which a resumed training sets to that of its first process."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _State:
    """The part of a checkpoint that is not the state of the network, the optimizer or the random generator."""

    def __init__(self, *, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.epoch = self.step = 0
        self.loss_sum, self.seen = 0.0, 0
        self.score_sum: float | None = 0.0
        self.scores: list[float] = []
        self.best: Mapping[str, Tensor] = {}
        self.best_epoch = 0
        self.numerics = training_numerics()
        self._consistent = True

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Prevent saving while the block runs, and afterwards if it was interrupted."""
        self._consistent = False
        yield
        self._consistent = True

    def record_epoch(self, model: nn.Module, score: float, *, epoch: int) -> None:
        if not self.scores or score > max(self.scores):
            self.best = {key: value.detach().clone() for key, value in model.state_dict().items()}
            self.best_epoch = epoch
        self.scores.append(score)

    def record_step(self, loss: float, score: float | None, images: int) -> None:
        self.step += 1
        self.loss_sum += loss * images
        self.score_sum = None if score is None or self.score_sum is None else self.score_sum + score * images
        self.seen += images

    def next_epoch(self) -> None:
        self.epoch, self.step = self.epoch + 1, 0
        self.loss_sum, self.score_sum, self.seen = 0.0, 0.0, 0

    def progress(self, steps: int) -> TrainingProgress:
        return TrainingProgress(
            epoch=self.epoch + 1,
            step=self.step,
            steps=steps,
            loss=self.loss_sum / self.seen,
            score=self.scores[-1] if self.score_sum is None else self.score_sum / self.seen,
        )

    def save(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write a checkpoint; if a step was interrupted, keep the one that exists."""
        if not self._consistent:
            return
        content = {
            "fingerprint": self.fingerprint,
            "epoch": self.epoch,
            "step": self.step,
            "loss_sum": self.loss_sum,
            "seen": self.seen,
            "score_sum": self.score_sum,
            "scores": self.scores,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "numerics": self.numerics,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        write_checkpoint(path, content)

    def load(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
        """Read a checkpoint and set the number of threads to that of its process; return False if there is none to use."""
        stored = read_checkpoint(path, fingerprint=self.fingerprint)
        if stored is None:
            return False
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        torch.set_rng_state(stored["random"])
        self.epoch, self.step = stored["epoch"], stored["step"]
        self.loss_sum, self.seen, self.score_sum = stored["loss_sum"], stored["seen"], stored["score_sum"]
        self.scores, self.best, self.best_epoch = stored["scores"], stored["best"], stored["best_epoch"]
        here, self.numerics = self.numerics, stored["numerics"]
        torch.set_num_threads(int(self.numerics["threads"].rpartition(THEN)[2]))
        self._record_changes({**here, "threads": str(torch.get_num_threads())})
        return True

    def _record_changes(self, here: Mapping[str, str]) -> None:
        """Record and report the settings of this process that differ from those of the process that wrote the checkpoint."""
        before = {name: value.rpartition(THEN)[2] for name, value in self.numerics.items()}
        changed = sorted(name for name in before.keys() | here.keys() if before.get(name) != here.get(name))
        if changed:
            console.warn(
                f"the training was started with other settings ({', '.join(changed)}): the last bits of the weights will "
                "differ from those of an uninterrupted training"
            )
        for name in changed:
            self.numerics[name] = f"{self.numerics.get(name, '')}{THEN}{here.get(name, '')}"


class _SaveTimer:
    """Whether SAVE_SECONDS have passed since the last checkpoint within an epoch."""

    def __init__(self) -> None:
        self._saved = time.monotonic()

    def is_due(self) -> bool:
        now = time.monotonic()
        if now - self._saved < SAVE_SECONDS:
            return False
        self._saved = now
        return True


def _calibrate(model: nn.Module, data: ImageBatches, options: TrainingOptions) -> None:
    """Run some images through the observers; fake quantization supports float32 only."""
    model.eval()
    with torch.no_grad():
        for index, (images, *_) in enumerate(data.batches(options.batch_size, seed=0)):
            model(torch.from_numpy(images))
            if index == CALIBRATION_BATCHES - 1:
                break


def _groups(model: nn.Module, options: TrainingOptions) -> list[dict[str, Any]]:
    """Return parameter groups with weight decay for weights, and without for biases and BatchNorms (one dimension)."""
    parameters = list(model.parameters())
    return [
        {"params": [item for item in parameters if item.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [item for item in parameters if item.ndim <= 1], "weight_decay": 0.0},
    ]


def _fingerprint(model: nn.Module, data: ImageBatches, validation: ImageBatches, options: TrainingOptions, seed: int) -> str:
    """Return a digest of everything that the result of a training depends on."""
    parts = [asdict(options), seed, data.sha256, validation.sha256, bundler.__version__, str(torch.__version__)]
    digest = hashlib.sha256(json.dumps(parts).encode())
    for key, value in model.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().clone().numpy().tobytes())  # a copy: a buffer shared with numpy cannot be resized later
    return digest.hexdigest()


def _set_modes(model: nn.Module, epoch: int, options: TrainingOptions) -> None:
    """Set train mode, and freeze observers and BatchNorm statistics from the epochs on that the options specify."""
    model.train()
    model.apply(enable_observer if epoch < options.observers_epochs else disable_observer)
    if epoch >= options.statistics_epochs:
        model.apply(freeze_bn_stats)
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.eval()


def _set_learning_rate(optimizer: torch.optim.Optimizer, options: TrainingOptions, progress: float) -> None:
    """Cosine annealing to 0; `progress` is the share of all steps done. See docs/decisions/learning-rate-from-step.md."""
    for group in optimizer.param_groups:
        group["lr"] = options.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def _step(
    model: nn.Module, objective: Objective, optimizer: torch.optim.Optimizer, images: Tensor, *labels: Tensor
) -> tuple[float, float | None]:
    optimizer.zero_grad(set_to_none=True)
    loss, score = objective.loss(model, images, *labels)
    if not loss.isfinite():
        raise TrainingError("the training loss is not finite", next_step="Train with a lower --learning-rate.")
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
    optimizer.step()
    return loss.item(), score


def _score(model: nn.Module, objective: Objective, *, frozen: bool) -> float:
    """Return the score of the fake-quantized model; observers record nothing meanwhile, nor afterwards if they are `frozen`."""
    model.eval()
    model.apply(disable_observer)
    with torch.no_grad():  # and not inference_mode, whose tensors cannot be trained
        score = objective.score(model)
    if not frozen:
        model.apply(enable_observer)
    return score
