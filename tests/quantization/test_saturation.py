"""Weights whose pairs of products do not saturate int16."""

from __future__ import annotations

import itertools

import pytest
import torch

from bundler.quantization.qconfig import torch_qconfig
from bundler.quantization.saturation import MAX_PAIR_SUM, SaturationFreeObserver, largest_pair_sums
from bundler.targets import TargetProfile


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1, 1), (4, 3, 1, 2), (4, 1, 2, 3), (4, 1)])
def test_adjacent_weights_are_those_of_the_channels_at_one_position_then_of_the_next_position(shape: tuple[int, ...]) -> None:
    weight = torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(0))
    for row, found in zip(weight, largest_pair_sums(weight), strict=True):
        flat = row.movedim(0, -1).flatten().tolist() if row.ndim == 3 else row.tolist()
        sums = [abs(a + b) for a, b in itertools.pairwise(flat)] or [abs(flat[0])]
        assert int(found) == max(sums)


def test_per_tensor_scales_are_the_largest_of_the_per_channel_ones() -> None:
    weight = torch.randn(8, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    scales = []
    for per_tensor in (False, True):
        observer = SaturationFreeObserver(per_tensor=per_tensor)
        observer(weight)
        scales.append(observer.calculate_qparams()[0])
    assert torch.equal(scales[1], scales[0].max().expand(8))


@pytest.mark.parametrize("is_qat", [False, True])
def test_only_channels_whose_adjacent_weights_sum_to_too_much_lose_range(target: TargetProfile, is_qat: bool) -> None:
    weight = torch.randn(16, 32, 3, 3)
    weight[0], weight[1] = 1.0, torch.tensor([1.0, -1.0]).repeat(16)[:, None, None]  # every pair sums to 2, and every pair to 0
    observer = torch_qconfig(target.quantization, is_qat=is_qat).weight()
    observer(weight)
    scale, zero_point = observer.calculate_qparams()
    assert not zero_point.any()
    integers = (weight / scale.reshape(-1, 1, 1, 1)).round().clamp(-128, 127).int()
    assert int(largest_pair_sums(integers).max()) <= MAX_PAIR_SUM
    assert int(integers[0].max()) == 64
    assert int(integers[1].max()) == 127


def test_the_limit_holds_after_observers_are_disabled(target: TargetProfile) -> None:
    fake = torch_qconfig(target.quantization, is_qat=True).weight()
    fake(torch.randn(4, 8, 3, 3))
    fake.apply(torch.ao.quantization.disable_observer)
    grown = 10 * torch.ones(4, 8, 3, 3)
    scale = (fake(grown) / fake.scale.reshape(-1, 1, 1, 1)).round()
    assert int(largest_pair_sums(scale).max()) <= MAX_PAIR_SUM
