"""A bundle whose device program is a few lines that a test writes: whatever such a program may do, this one does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundler.architecture import Architecture
from bundler.targets import CpuProfile, TargetProfile, load_targets
from bundler.verification.executors import HostExecutor

NATIVE = CpuProfile(name="native", present=(), absent=())

MACHINE: dict[str, Any] = {
    "machine": "aarch64",
    "cpu": {"model": "implementer 0x41 part 0xd03", "features": ["ASIMD", "NEON"]},
    "emulation": "emulated",
    "emulation_reason": "",
    "emulator": {"name": "qemu-aarch64", "version": "10.0.2 (Debian 1:10.0.2+ds-2)", "sha256": "0" * 64},
    "python": "3.11.2",
    "numpy": "2.4.6",
    "onnxruntime": "1.32.0",
    "known_answers": {"passed": True, "checks": {"float32 add": True}},
}

NOT_EMULATED: dict[str, Any] = {"emulation": "none", "emulator": None}

Runner = Callable[..., HostExecutor]


@pytest.fixture
def host() -> TargetProfile:
    """The target of this machine's own architecture, to be proved natively."""
    (target,) = (target for target in load_targets() if target.architecture is Architecture.host())
    verification = target.verification.model_copy(update={"cpus": (NATIVE,)})
    return target.model_copy(update={"verification": verification})


@pytest.fixture
def here(host: TargetProfile) -> dict[str, Any]:
    """What a device program on this machine reports."""
    return {**MACHINE, "machine": host.architecture.machine, "cpu": {"model": "this one", "features": []}, **NOT_EMULATED}


@pytest.fixture
def runner(tmp_path: Path, host: TargetProfile, here: dict[str, Any]) -> Runner:
    """Write a device program: lines of Python for each of two commands, with `probe` and `selftest` ready to be printed."""

    def write(*, probe: str = "print(probe)", selftest: str = "print(selftest)", seconds: int = 60) -> HostExecutor:
        mode = {
            "samples": 4,
            "model_sha256": "2" * 64,
            "outputs_sha256": "1" * 64,
            "sqnr_db": 21.5,
            "top1_agreement": 0.75,
            "boxes_agreement": None,
            "max_steps": 2,
        }
        modes = [
            {"name": "int8-ptq", **mode, "verdict": "passed", "reason": ""},
            {"name": "fp32", **mode, "max_steps": None, "verdict": "failed", "reason": "too far"},
        ]
        identity = {"schema": "edge-bundler/selftest/2", "bundle": "x", "bundle_sha256": "3" * 64}
        tested = {**here, **identity, "graph_optimization_level": "all", "modes": modes, "verdict": "failed"}
        lines = [
            "import json, os, signal, subprocess, sys, time",
            f"probe = {json.dumps({'schema': 'edge-bundler/probe/1', **here})!r}",
            f"selftest = {json.dumps(tested)!r}",
            "if sys.argv[1] == 'probe':",
            *(f"    {line}" for line in probe.splitlines()),
            "else:",
            *(f"    {line}" for line in selftest.splitlines()),
        ]
        (tmp_path / "device.pyz").write_text("\n".join(lines))
        verification = host.verification.model_copy(update={"timeout_seconds": seconds})
        return HostExecutor(bundle=tmp_path, target=host.model_copy(update={"verification": verification}))

    return write
