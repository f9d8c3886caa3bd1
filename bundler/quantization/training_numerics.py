"""Numerics: settings of a machine that determine the order of float32 sums, and thereby the last bits of trained weights."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch

__all__ = ["training_numerics"]

# Environment variables that limit the instruction sets of oneDNN and MKL; ATen's limit is part of its CPU capability.
_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE")


def training_numerics() -> dict[str, str]:
    """Return the settings of this process on which the last bits of trained weights depend: CPU, threads, versions, limits."""
    limits = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    return {
        "cpu": _cpu(),
        "aten_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "torch": str(torch.__version__),  # a str subclass, which weights_only=True cannot load
        **limits,
    }


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.machine()
