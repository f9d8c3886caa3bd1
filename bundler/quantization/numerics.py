"""Numerics: what of a machine decides in which order float32 sums are added up, and so the last bits of a training."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch

__all__ = ["training_numerics"]

# They limit what torch's libraries may use of a CPU; ATen's own limit shows in its capability.
_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE")


def training_numerics() -> dict[str, str]:
    """Return the settings of this process on which the last bits of a training depend."""
    limits = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    return {
        "cpu": _cpu(),
        "aten_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "torch": str(torch.__version__),  # which is a class of its own, and no string to a checkpoint
        **limits,
    }


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.machine()
