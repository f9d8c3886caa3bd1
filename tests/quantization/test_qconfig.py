from __future__ import annotations

import platform

import pytest
import torch

from bundler.quantization import get_platform_aware_qconfig
from bundler.quantization.qconfig import torch_qconfig
from bundler.targets import TargetProfile


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
def test_fbgemm_keeps_activations_to_seven_bits_and_scales_each_channel(target: TargetProfile, is_qat: bool) -> None:
    """An x86 without VNNI adds pairs of 8-bit products with saturation; 7 bits leave room for them."""
    qconfig = torch_qconfig(target.quantization, is_qat=is_qat)
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
