"""What this machine is: CPU, emulator, versions, and whether its arithmetic is correct."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from .answers import Cpu, KnownAnswers, Machine
from .arithmetic import check_arithmetic
from .emulator import find_emulator

__all__ = ["examine_machine"]


def examine_machine() -> Machine:
    """Return what this machine is; ONNX Runtime is not loaded."""
    emulation = find_emulator()
    checks = check_arithmetic()
    return Machine(
        machine=os.uname().machine,
        cpu=Cpu(model=cpu_model(emulation.requested_cpu), features=cpu_features()),
        emulation=emulation.state,
        emulation_reason=emulation.reason,
        emulator=emulation.emulator,
        python=platform.python_version(),
        numpy=np.__version__,
        onnxruntime=installed_onnxruntime(),
        known_answers=KnownAnswers(passed=all(checks.values()), checks=checks),
    )


def cpu_model(requested_cpu: str | None) -> str:
    """Name the CPU.

    On x86 an emulator shows the host's /proc/cpuinfo; there the name is that of the emulated CPU.
    """
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    if "CPU implementer" in facts:
        return f"implementer {facts['CPU implementer']} part {facts.get('CPU part', 'unknown')}"
    return requested_cpu or facts.get("model name", "unknown")


def cpu_features() -> tuple[str, ...]:
    """Return the instruction sets that numpy found, sorted."""
    core: Any = vars(np).get("_core") or vars(np)["core"]  # numpy 2, numpy 1
    features = core._multiarray_umath.__cpu_features__  # noqa: SLF001  numpy has no public name for them
    return tuple(sorted(name for name, enabled in features.items() if enabled))


def installed_onnxruntime() -> str | None:
    try:
        return importlib.metadata.version("onnxruntime")
    except importlib.metadata.PackageNotFoundError:
        return None
