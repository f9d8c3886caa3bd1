"""Accuracies that training scripts write beside the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bundler.models.checkpoints import load_weights
from bundler.models.claims import claims_in
from bundler.models.registry import find_model, load_parser


@pytest.mark.parametrize(
    ("checkpoint", "claims"),
    [
        ({"best_acc1": torch.tensor(76.13), "epoch": 90}, {"best_acc1": 0.7613}),
        ({"acc": 0.93, "loss": 0.2, "val/top-1": 91}, {"acc": 0.93, "val/top-1": 0.91}),
        ({"metrics": {"val_accuracy": 97.5, "val_loss": 0.1}}, {"val_accuracy": 0.975}),
        ({"best_fitness": 0.48}, {"best_fitness": 0.48}),
        ({"metrics/mAP50-95(B)": 0.37}, {"metrics/mAP50-95(B)": 0.37}),
        (
            {"callbacks": {"ModelCheckpoint{}": {"monitor": "val_acc", "best_model_score": torch.tensor(0.88)}}},
            {"val_acc": 0.88},
        ),
        ({"callbacks": {"ModelCheckpoint{}": {"monitor": "val_loss", "best_model_score": torch.tensor(0.1)}}}, {}),
        ({"best_acc": 0.0, "acc": float("nan"), "accuracy": True, "top1": "93", "acc1": 250}, {}),
        ({"acc5": 0.99, "accumulate": 0.5, "mapping": 0.5}, {}),
        ({"\x1b]acc": 0.9, "acc\n": 0.9, "_" * 100 + "acc": 0.9}, {}),
        ({"fc.weight": torch.zeros(2, 2)}, {}),
        ([1, 2], {}),
    ],
)
def test_figures_are_shares_by_their_names(checkpoint: Any, claims: dict[str, float]) -> None:
    assert claims_in(checkpoint) == pytest.approx(claims)


def test_a_checkpoint_says_what_it_reached(tmp_path: Path) -> None:
    spec = find_model("resnet18")[1]
    parser = load_parser(spec)
    torch.save({"state_dict": parser(num_classes=4).state_dict(), "best_acc1": 93.0}, tmp_path / "best.pth")
    loaded = load_weights(str(tmp_path / "best.pth"), spec, parser=parser, num_classes=4, pictures=lambda: None, seed=0)  # type: ignore[arg-type, return-value]
    assert loaded.claims == {"best_acc1": pytest.approx(0.93)}
