"""Which engine and qconfig a target gets (specification, `get_platform_aware_qconfig`)."""

from __future__ import annotations

import platform

from torch.ao.quantization import QConfig, get_default_qat_qconfig, get_default_qconfig

from bundler.targets import QuantizationProfile

__all__ = ["get_platform_aware_qconfig", "torch_qconfig"]


def get_platform_aware_qconfig(target: QuantizationProfile | None = None) -> QuantizationProfile:
    """Return the target's choice of engine and qconfig; without a target, what suits this host.

    The specification asks the machine it runs on. A bundle for arm64 is built on x86, so the target decides here, and the
    host only where none is given.
    """
    if target is not None:
        return target
    backend = "fbgemm" if platform.machine().lower() in ("x86_64", "amd64") else "qnnpack"
    return QuantizationProfile.model_validate({"engine": backend, "qconfig": backend})


def torch_qconfig(target: QuantizationProfile, *, is_qat: bool) -> QConfig:
    """Return torch's default qconfig of that name, for PTQ or for QAT."""
    qconfig: QConfig = get_default_qat_qconfig(target.qconfig) if is_qat else get_default_qconfig(target.qconfig)
    return qconfig
