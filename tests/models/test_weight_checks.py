"""Weights with which a network computes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bundler.errors import CheckpointError
from bundler.models.weight_checks import float_weights

StateDict = dict[str, Tensor]


@pytest.fixture
def weights() -> StateDict:
    return dict(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)).state_dict())


def checked(weights: StateDict) -> tuple[StateDict, list[str]]:
    kinds = {key: torch.int64 if "num_batches" in key else torch.float32 for key in weights}
    return float_weights(weights, kinds, source="mine.pth")


def test_good_weights_stay(weights: StateDict) -> None:
    loaded, warnings = checked(weights)
    assert warnings == []
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_other_precisions_become_single(kind: torch.dtype, weights: StateDict) -> None:
    loaded, _ = checked({key: value.to(kind) if value.is_floating_point() else value for key, value in weights.items()})
    assert {value.dtype for value in loaded.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        ("0.weight", lambda value: value * float("nan"), r"NaN or infinite values, first in 0\.weight"),
        ("1.bias", lambda value: value + float("inf"), r"NaN or infinite values, first in 1\.bias"),
        ("0.weight", lambda value: value.double() * 1e300, "outside of float32's range"),
        ("0.weight", lambda value: value * 1e37, r"values up to .* in 0\.weight, with which float32 overflows"),
        ("1.running_var", lambda value: value - 2, r"negative BatchNorm variances, first in 1\.running_var \(down to -1\)"),
        ("0.weight", torch.zeros_like, "only zeros in 1 of 3 layers, first in 0.weight"),
        ("3.weight", lambda value: torch.full_like(value, 1e-45), "only zeros and denormal numbers"),
        ("0.weight", lambda value: value.to(torch.int8), r"integers in 0\.weight \(int8\)"),
    ],
)
def test_bad_weights_are_named(key: str, change: Callable[[Tensor], Tensor], said: str, weights: StateDict) -> None:
    with pytest.raises(CheckpointError, match=said) as refusal:
        checked({**weights, key: change(weights[key])})
    assert "mine.pth" in refusal.value.message
    assert refusal.value.exit_code == 6


def test_whole_numbers_of_another_network_are_not_called_quantized(weights: StateDict) -> None:
    """Its keys are compared where it is loaded, and named there."""
    counter = torch.tensor(0)
    loaded, _ = float_weights({**weights, "bn1.num_batches_tracked": counter}, {}, source="mine.pth")
    assert loaded["bn1.num_batches_tracked"] is counter


def test_a_layer_of_zeros_in_the_middle_is_warned_of(weights: StateDict) -> None:
    _, warnings = checked({**weights, "2.weight": torch.zeros(4, 4, 1, 1)})
    assert warnings == ["layers whose weights are all zero: 1 (2.weight)"]
