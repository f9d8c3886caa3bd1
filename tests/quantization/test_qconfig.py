"""The qconfigs of the targets: bits of activations, and scales of weights."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.ao.quantization.observer import PerChannelMinMaxObserver

from bundler.quantization import get_platform_aware_qconfig
from bundler.quantization.qconfig import assign_qconfigs, torch_qconfig
from bundler.quantization.saturation import SaturationFreeObserver
from bundler.targets import QuantizationProfile, TargetProfile


def test_the_target_takes_precedence_over_the_host(target: TargetProfile) -> None:
    assert get_platform_aware_qconfig(target.quantization) == target.quantization


@pytest.mark.parametrize(
    ("machine", "engine"), [("x86_64", "fbgemm"), ("AMD64", "fbgemm"), ("aarch64", "qnnpack"), ("arm64", "qnnpack")]
)
def test_without_a_target_the_backend_of_the_host_is_used(machine: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    profile = get_platform_aware_qconfig()
    assert (profile.engine, profile.qconfig) == (engine, engine)


@pytest.mark.parametrize("is_qat", [False, True])
@pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning")  # for torch's default qconfig
def test_without_options_fbgemm_has_7_bit_activations_and_per_channel_weights(
    target: TargetProfile, is_qat: bool, without_options: Callable[[TargetProfile], TargetProfile]
) -> None:
    """CPUs without VNNI add pairs of products in int16 with saturation, which 7-bit activations avoid."""
    qconfig = torch_qconfig(without_options(target).quantization, is_qat=is_qat)
    activation, weight = qconfig.activation(), qconfig.weight()
    # For QAT, the observers are children of fake quantizations.
    observer = activation.activation_post_process if is_qat else activation
    fbgemm = target.quantization.qconfig == "fbgemm"
    observer(torch.linspace(0, 10, 100))
    scale, zero_point = observer.calculate_qparams()
    assert float(zero_point) == 0
    # The histogram observer may exclude some percent of the range, where there are few values.
    assert float(scale) == pytest.approx(10 / (127 if fbgemm else 255), rel=0.05)
    per_channel = weight.qscheme in (torch.per_channel_symmetric, torch.per_channel_affine)
    assert per_channel == fbgemm


@pytest.mark.parametrize("is_qat", [False, True])
def test_the_profiles_have_8_bit_activations(target: TargetProfile, is_qat: bool) -> None:
    activation = torch_qconfig(target.quantization, is_qat=is_qat).activation()
    observer = activation.activation_post_process if is_qat else activation
    observer(torch.linspace(0, 10, 100))
    assert float(observer.calculate_qparams()[0]) == pytest.approx(10 / 255, rel=0.05)


def test_depthwise_convolutions_are_not_limited_by_saturation(target: TargetProfile) -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 8, 1))
    assign_qconfigs(model, target.quantization, is_qat=False)
    whole: Any = model.qconfig
    depthwise, multiplied, pointwise = (getattr(layer, "qconfig", whole).weight for layer in model)
    assert type(depthwise()) is PerChannelMinMaxObserver
    assert type(multiplied()) is type(pointwise()) is SaturationFreeObserver


def test_gptq_requires_weights_that_cannot_saturate() -> None:
    with pytest.raises(ValidationError, match="gptq requires per-channel-weights and saturation-free-weights"):
        QuantizationProfile(engine="fbgemm", qconfig="fbgemm", options=("gptq",), fallback=())
