"""Training for INT8: it learns, it can be stopped anywhere and ends the same, and what does not belong together is refused."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bundler.errors import TrainingError
from bundler.evaluation.training_objectives import Classification
from bundler.models.mobilenet_v2 import mobilenet_v2
from bundler.quantization import convert, quantized_engine
from bundler.quantization import training as module
from bundler.quantization.training import TrainingProgress, TrainingRecord, train
from bundler.quantization.training_checkpoint import read_checkpoint, write_checkpoint
from bundler.targets import TargetProfile, find_target
from bundler.training_options import TrainingRecipe

RECIPE = TrainingRecipe(epochs=3, batch_size=4, learning_rate=0.01)


class InMemory:
    """Pictures of the fixture, labelled with what the float model says of them."""

    def __init__(self, pictures: Tensor, labels: Tensor) -> None:
        self.pictures, self.labels = pictures.numpy(), labels.numpy()
        self.sha256 = "a" * 64

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, size: int, *, seed: int | None = None, skip: int = 0
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        order = np.arange(len(self)) if seed is None else np.random.default_rng(seed).permutation(len(self))
        for start in range(skip * size, len(self), size):
            chosen = order[start : start + size]
            yield self.pictures[chosen], self.labels[chosen]


@pytest.fixture(scope="module")
def teacher(weights_of: Callable[[str], Mapping[str, Tensor]]) -> nn.Module:
    return mobilenet_v2(weights=weights_of("mobilenet_v2"), num_classes=10)


@pytest.fixture(scope="module")
def labelled(teacher: nn.Module, calibration: Tensor) -> InMemory:
    small = nn.functional.avg_pool2d(calibration, 2)  # 32 pixels: it is about the loop, not about the network
    with torch.inference_mode():
        return InMemory(small, teacher(small).argmax(1))


def objective(teacher: nn.Module, labelled: InMemory) -> Classification:
    return Classification(
        teacher=teacher, teacher_share=RECIPE.teacher_share, validation=labelled, batch_size=RECIPE.batch_size
    )


def prepared(weights: Mapping[str, Tensor], target: TargetProfile) -> nn.Module:
    return mobilenet_v2(weights=weights, num_classes=10, quantize=True, is_qat=True, target=target.quantization)


class _EnoughError(Exception):
    pass


Train = Callable[..., tuple[nn.Module, TrainingRecord]]


@pytest.fixture(scope="module")
def whole(
    weights_of: Callable[[str], Mapping[str, Tensor]],
    teacher: nn.Module,
    labelled: InMemory,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[nn.Module, TrainingRecord, list[float], Path]:
    """A training that was never stopped, with the losses it reported and its checkpoint."""
    model, losses = prepared(weights_of("mobilenet_v2"), find_target("x86")), []
    path = tmp_path_factory.mktemp("training") / "training.pt"
    record = train(
        model,
        labelled,
        objective(teacher, labelled),
        RECIPE,
        checkpoint=path,
        seed=0,
        report=lambda progress: losses.append(progress.loss),
    )
    return model, record, losses, path


@pytest.fixture
def run(weights_of: Callable[[str], Mapping[str, Tensor]], teacher: nn.Module, labelled: InMemory, tmp_path: Path) -> Train:
    def run_training(
        *,
        recipe: TrainingRecipe = RECIPE,
        checkpoint: str = "training.pt",
        report: Callable[[TrainingProgress], None] = lambda _progress: None,
    ) -> tuple[nn.Module, TrainingRecord]:
        model = prepared(weights_of("mobilenet_v2"), find_target("x86"))
        checked = objective(teacher, labelled)
        record = train(model, labelled, checked, recipe, checkpoint=tmp_path / checkpoint, seed=0, report=report)
        return model, record

    return run_training


Whole = tuple[nn.Module, TrainingRecord, list[float], Path]


def test_it_learns_what_the_labels_say_and_keeps_the_best_epoch(whole: Whole, labelled: InMemory) -> None:
    model, record, losses, _ = whole
    assert len(losses) == 12
    assert losses[-1] < losses[0]
    assert len(record.scores) == 3
    best = max(record.score_before, *record.scores)
    assert [record.score_before, *record.scores][record.best_epoch] == best
    target = find_target("x86")
    converted = convert(model, target.quantization)
    with quantized_engine(target.quantization.engine), torch.inference_mode():
        right = converted(torch.from_numpy(labelled.pictures)).argmax(1).numpy() == labelled.labels
    assert abs(float(right.mean()) - best) <= 2 / 16  # what training simulated is what INT8 computes, up to rounding


@pytest.mark.parametrize("stop", [2, 4, 9])
def test_stopped_anywhere_it_ends_with_the_same_weights(run: Train, whole: Whole, stop: int) -> None:
    model, expected, _, _ = whole
    steps = 0

    def interrupt(_progress: TrainingProgress) -> None:
        nonlocal steps
        steps += 1
        if steps == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(report=interrupt)
    seen: list[tuple[int, int]] = []
    resumed, record = run(report=lambda progress: seen.append((progress.epoch, progress.step)))
    assert len(seen) == 12 - stop
    assert seen[0] == (stop // 4 + 1, stop % 4 + 1)
    assert record == expected
    ours, theirs = model.state_dict(), resumed.state_dict()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_a_crash_loses_no_more_than_the_time_between_two_checkpoints(run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)

    def crash(progress: TrainingProgress) -> None:
        if (progress.epoch, progress.step) == (1, 3):
            raise RuntimeError("power is gone")

    with pytest.raises(RuntimeError, match="power"):
        run(report=crash)
    seen: list[int] = []
    run(report=lambda progress: seen.append(progress.step))
    assert seen[0] == 3  # the second step was saved


@pytest.mark.parametrize("problem", ["torn", "a bit", "empty", "another recipe", "another version"])
def test_a_checkpoint_that_cannot_be_used_is_set_aside_and_training_starts_over(
    problem: str, run: Train, whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytearray(whole[3].read_bytes())
    if problem == "torn":
        del content[len(content) // 2 :]
    elif problem == "a bit":
        content[len(content) // 2] ^= 1
    elif problem == "empty":
        content.clear()
    elif problem == "another version":
        monkeypatch.setattr("bundler.__version__", "0.0.1")
    (tmp_path / "training.pt").write_bytes(content)
    seen: list[tuple[int, int]] = []
    recipe = replace(RECIPE, epochs=2)
    with pytest.raises(_EnoughError):
        run(recipe=recipe if problem == "another recipe" else RECIPE, report=lambda now: _first(seen, now))
    assert seen == [(1, 1)]
    assert (tmp_path / "training.pt.unused").read_bytes() == content
    reason = "it belongs to another training" if problem.startswith("another") else "it is damaged"
    assert f"training.pt is not used: {reason}" in " ".join(capsys.readouterr().err.split())


def _first(seen: list[tuple[int, int]], progress: TrainingProgress) -> None:
    """Note where a training began, and stop it."""
    seen.append((progress.epoch, progress.step))
    raise _EnoughError


def test_with_other_settings_it_goes_on_with_as_many_threads_and_a_warning(
    run: Train, whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(whole[3], tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        _, record = run()
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert record == whole[1]
    assert record.numerics["threads"] == str(threads)
    assert "other settings" not in capsys.readouterr().err
    monkeypatch.setattr("bundler.quantization.training_numerics._cpu", lambda: "another CPU")
    _, record = run()
    assert record.numerics["cpu"].endswith(" then another CPU")
    assert "started with other settings (cpu)" in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting a small disk needs root")
def test_a_full_disk_leaves_the_checkpoint_that_was_there_and_the_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "training.pt"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], check=True)
    try:
        assert write_checkpoint(path, {"fingerprint": "a", "step": 1})
        assert not write_checkpoint(path, {"fingerprint": "a", "step": 2, "model": torch.rand(1_000_000)})
        assert read_checkpoint(path, fingerprint="a") == {"fingerprint": "a", "step": 1}
        assert [item.name for item in tmp_path.iterdir()] == ["training.pt"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert "No space left on device" in " ".join(capsys.readouterr().err.split())


def test_interrupted_anywhere_it_ends_with_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    """By SIGKILL or SIGINT: while it reads, within a step, between the optimizer and the record of it, while it saves."""
    program = Path(__file__).with_name("interrupted_trainings.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    output = subprocess.run(
        [sys.executable, "-W", "ignore", str(program), str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        timeout=600,
    ).stdout
    answers = json.loads(output)
    _, digest, _, _ = answers.pop("never")
    assert len(answers) == 12
    for name, (ended, reached, begun, left) in answers.items():
        assert ended == (-signal.SIGKILL if name.startswith("SIGKILL") else 130), name
        assert reached == digest, name
        assert begun > [1, 1], name  # it went on from a checkpoint
        assert left == [f"{name.partition(' ')[2]}.pt"], name  # no half-written file


def test_a_finished_training_is_not_repeated(run: Train, whole: Whole, tmp_path: Path) -> None:
    model, record, _, checkpoint = whole
    shutil.copy(checkpoint, tmp_path)
    seen: list[TrainingProgress] = []
    again, same = run(report=seen.append)
    assert seen == []
    assert same == record
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))


def test_a_loss_that_is_not_finite_stops_it(run: Train, labelled: InMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = copy.deepcopy(labelled.pictures)
    broken[3] = np.nan
    monkeypatch.setattr(labelled, "pictures", broken)
    with pytest.raises(TrainingError, match="not finite"):
        run()


def test_statistics_and_ranges_are_frozen_in_time() -> None:
    assert (TrainingRecipe().statistics_epochs, TrainingRecipe().observers_epochs) == (3, 4)
    assert (TrainingRecipe(epochs=1).statistics_epochs, TrainingRecipe(epochs=1).observers_epochs) == (1, 1)
