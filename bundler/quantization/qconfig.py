"""Which engine and qconfig a target gets (specification, `get_platform_aware_qconfig`)."""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import nn
from torch.ao.nn import intrinsic
from torch.ao.quantization import FakeQuantize, QConfig, get_default_qat_qconfig, get_default_qconfig
from torch.ao.quantization.observer import PerChannelMinMaxObserver

from bundler.quantization.ranges import RANGE_OBSERVERS
from bundler.quantization.saturation import SaturationFreeFakeQuantize, SaturationFreeObserver
from bundler.targets import QuantizationProfile

__all__ = ["assign_qconfigs", "get_platform_aware_qconfig", "is_depthwise", "torch_qconfig"]

_PER_CHANNEL: dict[str, Any] = {"dtype": torch.qint8, "qscheme": torch.per_channel_symmetric, "ch_axis": 0}


_FUSED = (intrinsic.ConvReLU2d, intrinsic.ConvBn2d, intrinsic.ConvBnReLU2d)


def get_platform_aware_qconfig(target: QuantizationProfile | None = None) -> QuantizationProfile:
    """Return the target's choice of engine and qconfig; without a target, torch's default for this host.

    The specification asks the machine it runs on. A bundle for arm64 is built on x86, so the target decides here, and the
    host only where none is given.
    """
    if target is not None:
        return target
    backend = "fbgemm" if platform.machine().lower() in ("x86_64", "amd64") else "qnnpack"
    return QuantizationProfile.model_validate({"engine": backend, "qconfig": backend, "options": (), "fallback": ()})


def torch_qconfig(target: QuantizationProfile, *, is_qat: bool) -> QConfig:
    """Return torch's default qconfig of that name, for PTQ or for QAT, with the profile's refinements."""
    qconfig: QConfig = get_default_qat_qconfig(target.qconfig) if is_qat else get_default_qconfig(target.qconfig)
    activation, weight = qconfig.activation, qconfig.weight
    if "8-bit-activations" in target.options:
        activation = _with(activation, reduce_range=False)
    if target.ranges is not None and not is_qat:  # training moves the ranges by itself
        activation = RANGE_OBSERVERS[target.ranges].with_args(**activation.p.keywords)
    if "saturation-free-weights" in target.options:
        whole = "per-channel-weights" not in target.options
        weight = _saturation_free(whole=whole, is_qat=is_qat)
    elif "per-channel-weights" in target.options:
        weight = _per_channel(is_qat=is_qat)
    return QConfig(activation=activation, weight=weight)


def assign_qconfigs(model: nn.Module, target: QuantizationProfile, *, is_qat: bool) -> None:
    """Give a fused model its qconfigs, in place; a depthwise convolution, whose products are never paired, keeps its range."""
    qconfig = torch_qconfig(target, is_qat=is_qat)
    model.qconfig = qconfig  # type: ignore[assignment]
    if "saturation-free-weights" not in target.options:
        return
    unlimited = tuple(item for item in target.options if item not in ("saturation-free-weights", "gptq"))
    weight = torch_qconfig(target.model_copy(update={"options": unlimited}), is_qat=is_qat).weight
    for module in model.modules():
        # A fused module holds its convolution first; PTQ asks the convolution for its qconfig, QAT the whole.
        layer = module[0] if isinstance(module, _FUSED) else module
        if isinstance(layer, nn.Conv2d) and is_depthwise(layer):
            module.qconfig = QConfig(activation=qconfig.activation, weight=weight)  # type: ignore[assignment]


def is_depthwise(layer: nn.Conv2d) -> bool:
    return layer.groups == layer.in_channels == layer.out_channels


def _with(factory: Any, **changes: Any) -> Any:
    wrapped = factory.p
    return wrapped.func.with_args(**{**wrapped.keywords, **changes})


def _per_channel(*, is_qat: bool) -> Any:
    if is_qat:
        return FakeQuantize.with_args(observer=PerChannelMinMaxObserver, **_PER_CHANNEL)
    return PerChannelMinMaxObserver.with_args(**_PER_CHANNEL)


def _saturation_free(*, whole: bool, is_qat: bool) -> Any:
    if is_qat:
        return SaturationFreeFakeQuantize.with_args(whole=whole)  # type: ignore[no-untyped-call]
    return SaturationFreeObserver.with_args(whole=whole)
