from __future__ import annotations

import platform
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.ao.quantization.observer import PerChannelMinMaxObserver

from bundler.quantization import get_platform_aware_qconfig
from bundler.quantization.qconfig import assign_qconfigs, torch_qconfig
from bundler.quantization.saturation import LARGEST_SUM, SaturationFreeObserver, largest_pair_sums
from bundler.targets import QuantizationProfile, TargetProfile


def test_the_target_decides(target: TargetProfile) -> None:
    assert get_platform_aware_qconfig(target.quantization) == target.quantization


@pytest.mark.parametrize(
    ("machine", "engine"), [("x86_64", "fbgemm"), ("AMD64", "fbgemm"), ("aarch64", "qnnpack"), ("arm64", "qnnpack")]
)
def test_without_a_target_the_host_decides(machine: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    profile = get_platform_aware_qconfig()
    assert (profile.engine, profile.qconfig) == (engine, engine)


@pytest.mark.parametrize("is_qat", [False, True])
@pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning")  # torch's advice on its own default
def test_fbgemm_keeps_activations_to_seven_bits_and_scales_each_channel(
    target: TargetProfile, is_qat: bool, unrefined: Callable[[TargetProfile], TargetProfile]
) -> None:
    """An x86 without VNNI adds pairs of 8-bit products with saturation; 7 bits leave room for them."""
    qconfig = torch_qconfig(unrefined(target).quantization, is_qat=is_qat)
    activation, weight = qconfig.activation(), qconfig.weight()
    # In QAT both sit in a fake quantization, which holds the observer.
    observer = activation.activation_post_process if is_qat else activation
    fbgemm = target.quantization.qconfig == "fbgemm"
    observer(torch.linspace(0, 10, 100))
    scale, zero_point = observer.calculate_qparams()
    assert float(zero_point) == 0
    # The histogram observer may cut the range's end, where few values lie, by some percent.
    assert float(scale) == pytest.approx(10 / (127 if fbgemm else 255), rel=0.05)
    per_channel = weight.qscheme in (torch.per_channel_symmetric, torch.per_channel_affine)
    assert per_channel == fbgemm


@pytest.mark.parametrize("is_qat", [False, True])
def test_the_profiles_leave_no_bit_of_the_activations_free(target: TargetProfile, is_qat: bool) -> None:
    activation = torch_qconfig(target.quantization, is_qat=is_qat).activation()
    observer = activation.activation_post_process if is_qat else activation
    observer(torch.linspace(0, 10, 100))
    assert float(observer.calculate_qparams()[0]) == pytest.approx(10 / 255, rel=0.05)


@pytest.mark.parametrize("is_qat", [False, True])
def test_weights_give_up_range_only_where_neighbours_add_up_to_too_much(target: TargetProfile, is_qat: bool) -> None:
    weight = torch.randn(16, 32, 3, 3)
    weight[0], weight[1] = 1.0, torch.tensor([1.0, -1.0]).repeat(16)[:, None, None]  # all pairs add up; none does
    observer = torch_qconfig(target.quantization, is_qat=is_qat).weight()
    observer(weight)
    scale, zero_point = observer.calculate_qparams()
    assert not zero_point.any()
    integers = (weight / scale.reshape(-1, 1, 1, 1)).round().clamp(-128, 127).int()
    assert int(largest_pair_sums(integers).max()) <= LARGEST_SUM
    assert int(integers[0].max()) == 64
    assert int(integers[1].max()) == 127


def test_frozen_observers_do_not_let_sums_of_weights_grow(target: TargetProfile) -> None:
    fake = torch_qconfig(target.quantization, is_qat=True).weight()
    fake(torch.randn(4, 8, 3, 3))
    fake.apply(torch.ao.quantization.disable_observer)
    grown = 10 * torch.ones(4, 8, 3, 3)
    scale = (fake(grown) / fake.scale.reshape(-1, 1, 1, 1)).round()
    assert int(largest_pair_sums(scale).max()) <= LARGEST_SUM


def test_depthwise_convolutions_keep_their_range(target: TargetProfile) -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 8, 1))
    assign_qconfigs(model, target.quantization, is_qat=False)
    whole = model.qconfig
    depthwise, multiplied, pointwise = (getattr(layer, "qconfig", whole).weight for layer in model)
    assert type(depthwise()) is PerChannelMinMaxObserver
    assert type(multiplied()) is type(pointwise()) is SaturationFreeObserver


def test_rounding_with_compensation_needs_scales_that_cannot_saturate() -> None:
    with pytest.raises(ValidationError, match="gptq requires per-channel-weights and saturation-free-weights"):
        QuantizationProfile(engine="fbgemm", qconfig="fbgemm", options=("gptq",), fallback=())
