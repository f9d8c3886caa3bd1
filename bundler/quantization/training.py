"""Quantization-aware training: a prepared network learns to live with INT8, and can be stopped anywhere and resumed."""

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
from bundler.quantization.numerics import training_numerics
from bundler.quantization.training_checkpoint import read_checkpoint, write_checkpoint
from bundler.quantization.training_interruption import Interruptions
from bundler.training_options import TrainingRecipe

__all__ = ["Objective", "Pictures", "TrainingProgress", "TrainingRecord", "train"]

SAVE_SECONDS = 120.0  # what a crash may cost at most
CALIBRATION_BATCHES = 8  # before the first step, so that ranges fit from the start
THEN = " then "  # between the settings of a machine before and after a training went on
GRADIENT_NORM = 1.0  # of all gradients together: a fake quantization at its edge can give large ones


class Pictures(Protocol):
    """Pictures in batches, float32 [N, 3, H, W], with whatever labels they have; shuffled by a seed where one is given."""

    def __len__(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    def batches(
        self, size: int, *, seed: int | None = None, skip: int = 0
    ) -> Iterator[tuple[NDArray[np.float32], *tuple[NDArray[Any], ...]]]: ...


class Objective(Protocol):
    """What is learned: a loss on a batch of the pictures, and a score, 0 to 1, by which the best epoch is chosen."""

    @property
    def validation(self) -> Pictures:
        """What the score is measured on; nothing is learned from them."""

    def loss(self, model: nn.Module, images: Tensor, *labels: Tensor) -> tuple[Tensor, float | None]:
        """Return what is to become smaller, a scalar, and the batch's own score where it has one."""

    def score(self, model: nn.Module) -> float:
        """Measure a model in eval mode."""


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """Where a training stands, after each step: the epoch's mean loss so far, a score, and an estimate of what is left.

    The score is the epoch's own so far, or that of the last epoch where batches have none.
    """

    epoch: int
    step: int
    steps: int
    loss: float
    score: float
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """The score before, and after each epoch; the best epoch, from 1, was kept (0: as it was before)."""

    pictures: int
    validation_pictures: int
    score_before: float
    scores: tuple[float, ...]
    best_epoch: int
    numerics: Mapping[str, str]  # settings of the machine on which the last bits of the weights depend


def train(
    prepared: nn.Module,
    pictures: Pictures,
    objective: Objective,
    recipe: TrainingRecipe,
    *,
    checkpoint: Path,
    seed: int,
    report: Callable[[TrainingProgress], None],
    on_epoch: Callable[[int, float], None] = lambda _epoch, _score: None,
) -> TrainingRecord:
    """Train a network that `load_fuse_prepare` prepared for QAT, in place; afterwards it is the one of the best epoch.

    A checkpoint is written after every epoch, every two minutes, and when it is interrupted, always of the state between two
    steps; a signal that arrives within a step waits for its end. Where `checkpoint` exists, the training goes on from there
    and ends with the same weights as one that was never stopped. A damaged file, or one of another training or version, is set
    aside, and the training begins anew.

    Args:
        prepared: fake-quantized, in train mode.
        pictures: to train on.
        objective: what to learn from them, and to choose the epoch by.
        recipe: learning rate and epochs.
        checkpoint: file to resume from and to write.
        seed: of the order of the pictures.
        report: called after every step.
        on_epoch: called after every epoch with its number, from 1 (0: before the first), and the score.

    Raises:
        TrainingError: the checkpoint cannot be read or set aside; the loss is not finite any more.
    """
    torch.manual_seed(seed)
    steps = math.ceil(len(pictures) / recipe.batch_size)
    optimizer = torch.optim.SGD(_groups(prepared, recipe), lr=recipe.learning_rate, momentum=recipe.momentum)
    state = _State(fingerprint=_fingerprint(prepared, pictures, objective.validation, recipe, seed))
    with _restored_threads():
        if state.load(checkpoint, prepared, optimizer):
            console.detail(f"going on from {checkpoint}: epoch {state.epoch + 1}, after {state.step} of {steps} steps")
        else:
            state.calibrate(prepared, pictures, recipe)
            state.consider(prepared, _score(prepared, objective, frozen=False), epoch=0)
            on_epoch(0, state.scores[0])
        clock = _Clock(left=(recipe.epochs - state.epoch) * steps - state.step)
        with Interruptions() as interruptions:
            try:
                while state.epoch < recipe.epochs:
                    _freeze(prepared, state.epoch, recipe)
                    order = seed * 1_000_003 + state.epoch
                    for batch in pictures.batches(recipe.batch_size, seed=order, skip=state.step):
                        _set_learning_rate(optimizer, recipe, (state.epoch * steps + state.step) / (recipe.epochs * steps))
                        with state.changing():
                            loss, score = _step(prepared, objective, optimizer, *map(torch.from_numpy, batch))
                            state.count(loss, score, len(batch[0]))
                        report(state.progress(steps, clock.tick()))
                        if clock.is_time_to_save():
                            state.save(checkpoint, prepared, optimizer)
                        interruptions.allowed()
                    with interruptions.at_once():
                        reached = _score(prepared, objective, frozen=state.epoch + 1 > recipe.observers_epochs)
                    with state.changing():
                        state.consider(prepared, reached, epoch=state.epoch + 1)
                        state.next_epoch()
                    on_epoch(state.epoch, state.scores[-1])
                    state.save(checkpoint, prepared, optimizer)
                    interruptions.allowed()
            except KeyboardInterrupt:
                state.save(checkpoint, prepared, optimizer)
                raise
    prepared.load_state_dict(state.best)
    prepared.eval()
    return TrainingRecord(
        pictures=len(pictures),
        validation_pictures=len(objective.validation),
        score_before=state.scores[0],
        scores=tuple(state.scores[1:]),
        best_epoch=state.best_epoch,
        numerics=state.numerics,
    )


@contextmanager
def _restored_threads() -> Iterator[None]:
    """Give torch back the threads that it had: a training that goes on takes as many as it was begun with."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _State:
    """What a checkpoint holds besides the network and the optimizer."""

    def __init__(self, *, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.epoch = self.step = 0
        self.loss_sum, self.seen = 0.0, 0
        self.score_sum: float | None = 0.0
        self.scores: list[float] = []
        self.best: Mapping[str, Tensor] = {}
        self.best_epoch = 0
        self.numerics = training_numerics()
        self.whole = True

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Mark what must happen as a whole: where it is left half-way, there is nothing to save."""
        self.whole = False
        yield
        self.whole = True

    def calibrate(self, model: nn.Module, pictures: Pictures, recipe: TrainingRecipe) -> None:
        """Show some pictures to the observers, so that training starts from ranges that fit."""
        model.eval()
        with torch.no_grad():
            for index, (images, *_) in enumerate(pictures.batches(recipe.batch_size, seed=0)):
                model(torch.from_numpy(images))
                if index == CALIBRATION_BATCHES - 1:
                    break

    def consider(self, model: nn.Module, score: float, *, epoch: int) -> None:
        if not self.scores or score > max(self.scores):
            self.best = {key: value.detach().clone() for key, value in model.state_dict().items()}
            self.best_epoch = epoch
        self.scores.append(score)

    def count(self, loss: float, score: float | None, pictures: int) -> None:
        self.step += 1
        self.loss_sum += loss * pictures
        self.score_sum = None if score is None or self.score_sum is None else self.score_sum + score * pictures
        self.seen += pictures

    def next_epoch(self) -> None:
        self.epoch, self.step = self.epoch + 1, 0
        self.loss_sum, self.score_sum, self.seen = 0.0, 0.0, 0

    def progress(self, steps: int, seconds_left: float) -> TrainingProgress:
        return TrainingProgress(
            epoch=self.epoch + 1,
            step=self.step,
            steps=steps,
            loss=self.loss_sum / self.seen,
            score=self.scores[-1] if self.score_sum is None else self.score_sum / self.seen,
            seconds_left=seconds_left,
        )

    def save(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write a checkpoint; within a step, the one from before it stays."""
        if self.whole:
            networks = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
            write_checkpoint(path, {**vars(self), **networks})

    def load(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
        """Go on from a checkpoint, with as many threads; return False where there is none that can be used."""
        stored = read_checkpoint(path, fingerprint=self.fingerprint)
        if stored is None:
            return False
        model.load_state_dict(stored.pop("model"))
        optimizer.load_state_dict(stored.pop("optimizer"))
        torch.set_rng_state(stored.pop("random"))
        here = self.numerics
        vars(self).update(stored)
        torch.set_num_threads(int(self.numerics["threads"].rpartition(THEN)[2]))
        self._note_changes({**here, "threads": str(torch.get_num_threads())})
        return True

    def _note_changes(self, here: Mapping[str, str]) -> None:
        """Record where this process computes with other settings than the one that wrote the checkpoint."""
        before = {name: value.rpartition(THEN)[2] for name, value in self.numerics.items()}
        changed = sorted(name for name in before.keys() | here.keys() if before.get(name) != here.get(name))
        if changed:
            console.warn(
                f"the training was begun with other settings ({', '.join(changed)}): its result differs in the last bits from "
                "one that was never interrupted"
            )
        for name in changed:
            self.numerics[name] = f"{self.numerics.get(name, '')}{THEN}{here.get(name, '')}"


class _Clock:
    """Estimates what is left from the pace of the last steps, and tells when to save."""

    def __init__(self, *, left: int) -> None:
        self.left = left
        self.before = self.saved = time.monotonic()
        self.pace = 0.0

    def tick(self) -> float:
        now = time.monotonic()
        took, self.before = now - self.before, now
        self.pace = took if self.pace == 0 else 0.95 * self.pace + 0.05 * took
        self.left -= 1
        return self.pace * self.left

    def is_time_to_save(self) -> bool:
        if time.monotonic() - self.saved < SAVE_SECONDS:
            return False
        self.saved = time.monotonic()
        return True


def _groups(model: nn.Module, recipe: TrainingRecipe) -> list[dict[str, Any]]:
    """Give weight decay to weights alone: biases and BatchNorms have one dimension."""
    parameters = list(model.parameters())
    return [
        {"params": [item for item in parameters if item.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [item for item in parameters if item.ndim <= 1], "weight_decay": 0.0},
    ]


def _fingerprint(model: nn.Module, pictures: Pictures, validation: Pictures, recipe: TrainingRecipe, seed: int) -> str:
    parts = [asdict(recipe), seed, pictures.sha256, validation.sha256, bundler.__version__, str(torch.__version__)]
    digest = hashlib.sha256(json.dumps(parts).encode())
    for key, value in model.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().clone().numpy().tobytes())  # shared with numpy, a buffer could not be resized
    return digest.hexdigest()


def _freeze(model: nn.Module, epoch: int, recipe: TrainingRecipe) -> None:
    model.train()
    model.apply(enable_observer if epoch < recipe.observers_epochs else disable_observer)
    if epoch >= recipe.statistics_epochs:
        model.apply(freeze_bn_stats)
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.eval()


def _set_learning_rate(optimizer: torch.optim.Optimizer, recipe: TrainingRecipe, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate * (1 + math.cos(math.pi * share)) / 2


def _step(
    model: nn.Module, objective: Objective, optimizer: torch.optim.Optimizer, images: Tensor, *labels: Tensor
) -> tuple[float, float | None]:
    optimizer.zero_grad(set_to_none=True)
    loss, score = objective.loss(model, images, *labels)
    if not loss.isfinite():
        raise TrainingError("the loss is not finite any more", next_step="Train with a lower --learning-rate.")
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
    optimizer.step()
    return loss.item(), score


def _score(model: nn.Module, objective: Objective, *, frozen: bool) -> float:
    """Return the fake-quantized model's score; no observer learns from the validation pictures."""
    model.eval()
    model.apply(disable_observer)
    with torch.no_grad():  # tensors of the inference mode could not be trained on
        score = objective.score(model)
    if not frozen:
        model.apply(enable_observer)
    return score
