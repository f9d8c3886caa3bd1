"""What a probe must show before a CPU's results count as evidence."""

from __future__ import annotations

from typing import Any

import pytest

from bundler.errors import EmulatorError
from bundler.targets import CpuProfile, find_target
from bundler.verification.evidence import distrust
from bundler.verification.selftest import Probe, read_probe

TARGET = find_target("arm64")
A53, _, A76 = TARGET.verification.cpus
NATIVE = CpuProfile(name="native", present=(), absent=())


def probe(**changes: Any) -> Probe:
    document = {
        "schema": "edge-bundler/probe/1",
        "machine": "aarch64",
        "cpu": {"model": "implementer 0x41 part 0xd03", "features": ["ASIMD", "NEON"]},
        "emulator": {"name": "qemu-aarch64", "version": "10.0.2 (Debian 1:10.0.2+ds-2)", "sha256": "0" * 64},
        "python": "3.11.2",
        "numpy": "2.4.6",
        "onnxruntime": "1.32.0",
        "known_answers": {"passed": True, "checks": {"float32 add": True}},
    }
    return Probe.model_validate({**document, **changes})


def test_a_good_probe_is_trusted() -> None:
    assert distrust(probe(), TARGET, A53) == ""
    assert distrust(probe(emulator=None), TARGET, NATIVE) == ""


@pytest.mark.parametrize(
    ("changes", "cpu", "words"),
    [
        ({"machine": "x86_64"}, A53, "said x86_64, not aarch64"),
        ({"known_answers": {"passed": False, "checks": {"float32 add": False}}}, A53, "computes wrongly: float32 add"),
        ({"emulator": {"name": "qemu-aarch64", "version": "7.2.22 (Debian)", "sha256": None}}, A53, "older than 10.0"),
        ({"emulator": {"name": "unknown", "version": "unknown", "sha256": None}}, A53, "does not tell its version"),
        ({"emulator": None}, A53, "nothing emulates cortex-a53"),
        ({}, NATIVE, "not native: qemu-aarch64"),
        ({}, A76, "lacks ASIMDDP"),
        ({"cpu": {"model": "", "features": ["ASIMD", "ASIMDDP"]}}, A53, "it has ASIMDDP"),
    ],
)
def test_a_doubtful_one_is_not(changes: dict[str, Any], cpu: CpuProfile, words: str) -> None:
    assert words in distrust(probe(**changes), TARGET, cpu)


@pytest.mark.parametrize("text", ["", "not json", "{}", '{"machine": 3}'])
def test_an_answer_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises(EmulatorError, match="cannot be read"):
        read_probe(text)
