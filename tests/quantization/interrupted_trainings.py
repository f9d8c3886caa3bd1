"""A program for tests: trains a small network in processes that end at given moments, and resumes each training.

`python interrupted_trainings.py FOLDER` prints a JSON object. Its keys are moments, and `never` for an uninterrupted training.
Its values are [exit code or signal of the first process, digest of the weights after the resumed training, epoch and step at
which it resumed, files in its folder].
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from bundler.quantization import DeQuantStub, QuantStub, fuse_modules, load_fuse_prepare
from bundler.quantization import training as module
from bundler.quantization.training import TrainingProgress, train
from bundler.targets import find_target
from bundler.training_options import TrainingOptions

OPTIONS = TrainingOptions(epochs=3, batch_size=4, learning_rate=0.05)
LAST = 12  # batches before the moment: four of the calibration, and two epochs of four


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Flatten())
        self.last = nn.Linear(8 * 6 * 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.dequant(self.last(self.body(self.quant(x))))
        return logits

    def fuse_model(self, is_qat: bool | None = None) -> None:
        fuse_modules(self.body, ["0", "1", "2"], is_qat=bool(is_qat))


class Moments:
    """Calls `act` once, at the moment `asked` after LAST batches."""

    def __init__(self, asked: str, act: Callable[[], None]) -> None:
        self.asked, self.act, self.steps = asked, act, 0

    def __call__(self, moment: str) -> None:
        if self.steps == LAST and moment == self.asked:
            self.steps = -1000  # once
            self.act()


class Data:
    sha256 = "a" * 64

    def __init__(self, moments: Moments) -> None:
        generator = np.random.default_rng(0)
        self.moments = moments
        self.images = generator.normal(size=(16, 3, 8, 8)).astype(np.float32)
        self.labels = generator.integers(0, 4, 16)

    def __len__(self) -> int:
        return 16

    def batches(self, size: int, *, seed: int | None = None, skip: int = 0) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        order = np.arange(16) if seed is None else np.random.default_rng(seed).permutation(16)
        for start in range(skip * size, 16, size):
            self.moments.steps += seed is not None
            self.moments("reading")
            yield self.images[order[start : start + size]], self.labels[order[start : start + size]]


class Task:
    def __init__(self, moments: Moments) -> None:
        self.validation, self.moments = Data(Moments("", lambda: None)), moments

    def loss(self, model: nn.Module, images: Tensor, *labels: Tensor) -> tuple[Tensor, float]:
        logits = model(images)
        self.moments("forward")  # BatchNorm statistics, ranges and the random state have changed
        return nn.functional.cross_entropy(logits, labels[0]), 0.0

    def score(self, model: nn.Module) -> float:
        self.moments("score")
        right = (model(torch.from_numpy(self.validation.images)).argmax(1).numpy() == self.validation.labels).mean()
        return float(right)


def run(folder: Path, moment: str, act: Callable[[], None]) -> dict[str, Any]:
    moments, seen = Moments(moment, act), list[tuple[int, int]]()
    for name in ("fsync", "replace"):
        setattr(os, name, partial(_after, moments, name, getattr(os, name)))
    register_optimizer_step_post_hook(lambda *_args: moments("optimizer"))
    torch.manual_seed(0)
    target = find_target("x86").quantization
    model = load_fuse_prepare(Small(), None, quantize=True, is_qat=True, target=target)

    def report(progress: TrainingProgress) -> None:
        seen.append((progress.epoch, progress.step))
        moments("report")

    data, path = Data(moments), folder / f"{moment.replace(' ', '-')}.pt"
    train(model, data, Task(moments), OPTIONS, checkpoint=path, seed=0, report=report)
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values()))
    return {"digest": digest.hexdigest(), "first": seen[0]}


def _after(moments: Moments, moment: str, original: Callable[..., Any], *args: Any) -> Any:
    moments(moment)
    return original(*args)


def in_a_process(work: Callable[[], dict[str, Any]], result: Path) -> int:
    """Return the exit code of the process, or the negative number of the signal that ended it."""
    number = os.fork()
    if number == 0:
        try:
            result.write_text(json.dumps(work()))
        except KeyboardInterrupt:
            os._exit(130)
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    module.SAVE_SECONDS = 0.0
    killed = [f"SIGKILL {moment}" for moment in ("reading", "forward", "optimizer", "report", "score", "fsync", "replace")]
    interrupted = [f"SIGINT {moment}" for moment in ("reading", "forward", "optimizer", "score", "fsync")]
    # In this process, so that modules that torch imports late are loaded before the others are forked.
    answers: dict[str, Any] = {"never": [0, *run(folder, "never", lambda: None).values(), ["never.pt"]]}
    for name in (*killed, *interrupted):
        signal_name, _, moment = name.partition(" ")
        place, result = folder / name.replace(" ", "-"), folder / "result.json"
        place.mkdir()
        number = getattr(signal, signal_name)
        ended = in_a_process(partial(run, place, moment, partial(signal.raise_signal, number)), result)
        in_a_process(partial(run, place, moment, lambda: None), result)
        answers[name] = [ended, *json.loads(result.read_text()).values(), sorted(path.name for path in place.iterdir())]
        result.unlink()
    print(json.dumps(answers))  # noqa: T201


if __name__ == "__main__":
    main()
