"""Evidence: what a probe must show before a CPU's results count, and what becomes of each way in which a runner can end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bundler.architecture import Architecture
from bundler.device.answers import PROBE_SCHEMA, Probe
from bundler.errors import BundleDamagedError, EmulatorError, OtherFilesExecutedError
from bundler.manifest import Evidence
from bundler.targets import CpuProfile, TargetProfile, find_target, load_targets
from bundler.verification.device_answers import read_probe, read_selftest
from bundler.verification.evidence import Expected, distrust, verify_on_cpu, verify_on_every_cpu
from bundler.verification.executors import HostExecutor

from .conftest import MACHINE, NATIVE, NOT_EMULATED, Runner

TARGET = find_target("arm64")
A53, _, A76, _ = TARGET.verification.cpus
EXPECTED = Expected(bundle_sha256="3" * 64, models={"int8-ptq": "2" * 64, "fp32": "2" * 64})


def probe(**changes: Any) -> Probe:
    return read_probe(json.dumps({"schema": PROBE_SCHEMA, **MACHINE, **changes}))


def emulator(version: str) -> dict[str, Any]:
    return {"emulator": {"name": "qemu-aarch64", "version": version, "sha256": None}}


UNKNOWN = {"emulation": "unknown", "emulation_reason": "no /proc", "emulator": None}


def features(*names: str) -> dict[str, Any]:
    return {"cpu": {"model": "", "features": list(names)}}


@pytest.mark.parametrize(
    ("changes", "cpu"),
    [
        ({}, A53),
        (features("ASIMD", "ASIMDDP", "ASIMDHP", "SVE"), A76),
        (emulator("10.0"), A53),
        (emulator("11.0.50 (v11.0.0-rc1)"), A53),
        (NOT_EMULATED, NATIVE),
        ({"onnxruntime": None}, A53),
    ],
    ids=["a53", "a76", "the oldest", "newer", "native", "not told"],
)
def test_a_good_probe_is_trusted(changes: dict[str, Any], cpu: CpuProfile) -> None:
    assert distrust(probe(**changes), TARGET, cpu) == ""


@pytest.mark.parametrize(
    ("changes", "cpu", "words"),
    [
        ({"machine": "x86_64"}, A53, "said x86_64, not aarch64"),
        (
            {"known_answers": {"passed": False, "checks": {"zlib": False, "sha256": True, "float32 add": False}}},
            A53,
            "its arithmetic is wrong: zlib, float32 add",
        ),
        (
            {"known_answers": {"passed": False, "checks": {"zlib": False}}, **NOT_EMULATED},
            NATIVE,
            "its arithmetic is wrong: zlib",
        ),
        (emulator("7.2.22 (Debian)"), A53, "older than 10.0"),
        (emulator("9.2.4"), A53, "qemu-aarch64 9.2.4 is older than 10.0"),
        (emulator("unknown"), A53, "does not report its version"),
        (NOT_EMULATED, A53, "nothing emulates cortex-a53"),
        (UNKNOWN, NATIVE, "could not be determined whether the CPU is emulated: no /proc"),
        (UNKNOWN, A53, "could not be determined whether the CPU is emulated: no /proc"),
        ({}, NATIVE, "not native: qemu-aarch64"),
        (features("ASIMD"), A76, "not a cortex-a76: it lacks ASIMDDP, ASIMDHP"),
        (features("ASIMD", "ASIMDDP"), A53, "it has ASIMDDP"),
        (features("ASIMDDP"), A53, "it lacks ASIMD and it has ASIMDDP"),
        (features(), A53, "it lacks ASIMD"),
    ],
)
def test_a_doubtful_one_is_not(changes: dict[str, Any], cpu: CpuProfile, words: str) -> None:
    assert words in distrust(probe(**changes), TARGET, cpu)


@pytest.mark.parametrize("text", ["", "not json", "{}", '{"machine": 3}'])
def test_an_answer_that_is_none_is_an_error(text: str) -> None:
    for read in (read_probe, read_selftest):
        with pytest.raises(EmulatorError, match="cannot be read"):
            read(text)


def test_a_later_device_program_may_say_more() -> None:
    assert read_probe(json.dumps({"schema": PROBE_SCHEMA, **MACHINE, "temperature": 40})).machine == "aarch64"


def test_an_answer_of_another_schema_is_an_error() -> None:
    with pytest.raises(EmulatorError, match="schema"):
        read_probe(json.dumps({"schema": "edge-bundler/probe/99", **MACHINE}))


def prove(executor: HostExecutor, expected: Expected = EXPECTED) -> dict[str, Evidence]:
    return verify_on_cpu(executor, executor.target, NATIVE, expected, on_stderr_line=lambda _line: None)


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        (Expected(bundle_sha256="4" * 64, models=EXPECTED.models), "runner.json has another SHA-256"),
        (Expected(bundle_sha256="3" * 64, models={"int8-ptq": "5" * 64, "fp32": "2" * 64}), "the model of int8-ptq"),
        (Expected(bundle_sha256="3" * 64, models={"int8-ptq": "2" * 64, "int8-qat": "2" * 64}), "the model of int8-qat"),
    ],
    ids=["another bundle", "another model", "another mode"],
)
def test_the_results_of_other_files_are_never_recorded(runner: Runner, expected: Expected, words: str) -> None:
    with pytest.raises(OtherFilesExecutedError, match=words):
        prove(runner(), expected)


def test_a_mode_cannot_pass_without_saying_what_was_executed(runner: Runner) -> None:
    forgetful = runner(selftest=f"print(selftest.replace('\"{'2' * 64}\"', 'null'))")
    with pytest.raises(OtherFilesExecutedError, match="the model of int8-ptq"):
        prove(forgetful)


def test_what_the_runner_measured_and_where_becomes_evidence(runner: Runner, host: TargetProfile) -> None:
    evidence = prove(runner())
    int8, fp32 = evidence["int8-ptq"], evidence["fp32"]
    assert int8.model_dump(exclude_defaults=True, exclude={"runner"}) == {
        "cpu": "native",
        "verdict": "passed",
        "machine": host.architecture.machine,
        "place": "host",
        "python": "3.11.2",
        "numpy": "2.4.6",
        "onnxruntime": "1.32.0",
        "graph_optimization_level": "all",
        "samples": 4,
        "bundle_sha256": "3" * 64,
        "model_sha256": "2" * 64,
        "outputs_sha256": "1" * 64,
        "sqnr_db": 21.5,
        "top1_agreement": 0.75,
        "max_steps": 2,
    }
    assert int8.runner is not None
    assert (int8.runner.kind, int8.runner.name) == ("native", "this one")
    assert (fp32.verdict, fp32.reason, fp32.max_steps) == ("failed", "too far", None)


@pytest.mark.parametrize(
    ("lines", "verdict", "words"),
    [
        ({"probe": "print('error: no numpy', file=sys.stderr)\nsys.exit(4)"}, "not_run", "the probe did not run: no numpy"),
        ({"probe": "os.kill(os.getpid(), signal.SIGILL)"}, "not_run", "the probe did not run: ended by SIGILL"),
        ({"probe": "time.sleep(600)", "seconds": 1}, "not_run", "time limit of 1 s"),
        ({"probe": "print(probe.replace('true', 'false'))\nsys.exit(1)"}, "not_run", "its arithmetic is wrong: float32 add"),
        ({"selftest": "time.sleep(600)", "seconds": 1}, "not_run", "time limit of 1 s"),
        ({"selftest": "sys.exit(4)"}, "failed", "the selftest did not run: no message (exit code 4)"),
        ({"selftest": "os.kill(os.getpid(), signal.SIGSEGV)"}, "failed", "ended by SIGSEGV"),
    ],
    ids=["refused", "crashed", "hung", "wrong", "selftest hung", "selftest refused", "selftest crashed"],
)
def test_a_runner_that_ends_otherwise_proves_nothing(runner: Runner, lines: dict[str, Any], verdict: str, words: str) -> None:
    for evidence in prove(runner(**lines)).values():
        assert evidence.verdict == verdict
        assert words in evidence.reason
        assert evidence.outputs_sha256 is None


def test_a_file_that_changed_under_the_runner_is_damage(runner: Runner) -> None:
    with pytest.raises(BundleDamagedError, match=r"golden/inputs\.npy is changed"):
        prove(runner(selftest="print('error: golden/inputs.npy is changed', file=sys.stderr)\nsys.exit(3)"))


@pytest.mark.parametrize("command", ["probe", "selftest"])
def test_a_runner_of_another_kind_is_an_error(runner: Runner, command: str) -> None:
    with pytest.raises(EmulatorError, match="cannot be read"):
        prove(runner(**{command: "print('hello')"}))


def test_a_doubtful_machine_is_not_asked_for_results(runner: Runner, tmp_path: Path) -> None:
    executor = runner(probe="print(probe.replace('true', 'false'))", selftest="open('asked', 'w')")
    assert {item.verdict for item in prove(executor).values()} == {"not_run"}
    assert not (tmp_path / "asked").exists()


def test_a_foreign_target_is_not_executed_on_the_host(runner: Runner, tmp_path: Path) -> None:
    runner(probe=f"open({str(tmp_path / 'executed')!r}, 'w')")
    (foreign,) = (target for target in load_targets() if target.architecture is not Architecture.host())
    executor = HostExecutor(bundle=tmp_path, target=foreign)
    seen = list(verify_on_every_cpu(executor, foreign, EXPECTED, pictures=1))
    assert [item["fp32"].cpu for item in seen] == [cpu.name for cpu in foreign.verification.cpus]
    assert {item.verdict for of_cpu in seen for item in of_cpu.values()} == {"not_run"}
    assert {item.reason for of_cpu in seen for item in of_cpu.values()} == {
        f"{foreign.platform} programs need a container engine with emulation, and none answers"
    }
    assert not (tmp_path / "executed").exists()
