"""The qconfigs of a target: torch's default of a backend, changed by the options of the target profile."""

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
    """Return the quantization profile of the target or, without a target, torch's default for the host.

    docs/specification.md chooses by the host alone. Here bundles for arm64 are built on x86, so the target takes precedence.
    """
    if target is not None:
        return target
    backend = "fbgemm" if platform.machine().lower() in ("x86_64", "amd64") else "qnnpack"
    return QuantizationProfile.model_validate({"engine": backend, "qconfig": backend, "options": (), "fallback": ()})


def torch_qconfig(target: QuantizationProfile, *, is_qat: bool) -> QConfig:
    """Return torch's default qconfig (`target.qconfig`) for PTQ or QAT, changed by the options of the profile."""
    qconfig: QConfig = get_default_qat_qconfig(target.qconfig) if is_qat else get_default_qconfig(target.qconfig)
    activation, weight = qconfig.activation, qconfig.weight
    if "8-bit-activations" in target.options:
        activation = _with(activation, reduce_range=False)
    if target.ranges is not None and not is_qat:  # QAT has observers of its own, which follow the training
        activation = RANGE_OBSERVERS[target.ranges].with_args(**activation.p.keywords)
    if "saturation-free-weights" in target.options:
        per_tensor = "per-channel-weights" not in target.options
        weight = _saturation_free(per_tensor=per_tensor, is_qat=is_qat)
    elif "per-channel-weights" in target.options:
        weight = _per_channel(is_qat=is_qat)
    return QConfig(activation=activation, weight=weight)


def assign_qconfigs(model: nn.Module, target: QuantizationProfile, *, is_qat: bool) -> None:
    """Set the qconfigs of a fused model, in place.

    A depthwise convolution gets one without the limit on adjacent weights, because kernels do not add its products in pairs.
    """
    qconfig = torch_qconfig(target, is_qat=is_qat)
    model.qconfig = qconfig  # type: ignore[assignment]
    if "saturation-free-weights" not in target.options:
        return
    unlimited = tuple(item for item in target.options if item not in ("saturation-free-weights", "gptq"))
    weight = torch_qconfig(target.model_copy(update={"options": unlimited}), is_qat=is_qat).weight
    for module in model.modules():
        # In a fused module the convolution is the first child; its qconfig is read from the convolution for PTQ, from the
        # fused module for QAT.
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


def _saturation_free(*, per_tensor: bool, is_qat: bool) -> Any:
    if is_qat:
        return SaturationFreeFakeQuantize.with_args(per_tensor=per_tensor)  # type: ignore[no-untyped-call]
    return SaturationFreeObserver.with_args(per_tensor=per_tensor)
