"""Evidence from one CPU: the probe decides whether its results count, the selftest gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

from packaging.version import InvalidVersion, Version

from bundler import console
from bundler.device.answers import Machine, Selftest
from bundler.device.device_error import DAMAGED, PASSED, WRONG
from bundler.engines.container import RunResult
from bundler.engines.emulation import Launch, NotRunnable
from bundler.errors import BundleDamagedError, ContainerTimeoutError, OtherFilesExecutedError
from bundler.manifest import Evidence, RunnerRecord
from bundler.targets import CpuProfile, TargetProfile
from bundler.verification.device_answers import read_probe, read_selftest

__all__ = ["Executor", "Expected", "verify_on_cpu", "verify_on_every_cpu"]


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the device program has to report that it executed: SHA-256 of runner.json, and of the model of each mode."""

    bundle_sha256: str
    models: Mapping[str, str]


class Executor(Protocol):
    """Where the device program is executed: in the device image, or as a process of this host."""

    @property
    def place(self) -> Literal["container", "host"]: ...

    @property
    def image_digest(self) -> str | None:
        """`sha256:…` of the configuration of the device image; None on the host."""
        ...

    def launch(self, cpu: CpuProfile) -> Launch | NotRunnable: ...

    def run(self, launch: Launch, arguments: Sequence[str], on_stderr_line: Callable[[str], None]) -> RunResult:
        """Run the bundle's device program."""
        ...

    def trace(self, launch: Launch, model: Path, inputs: Path, options: Sequence[str]) -> RunResult:
        """Run an instrumented graph; `options` are the graph optimization level and the number of inputs."""
        ...


def verify_on_every_cpu(
    executor: Executor, target: TargetProfile, expected: Expected, *, pictures: int
) -> Iterator[dict[str, Evidence]]:
    """Yield, CPU after CPU of the profile, the evidence of each mode; `pictures` is how many images one CPU runs."""
    for cpu in target.verification.cpus:
        with console.progress(f"verifying on {cpu.name}", pictures) as advance:

            def count(line: str, advance: Callable[[int], None] = advance) -> None:
                if ": image " in line:
                    advance(1)

            yield verify_on_cpu(executor, target, cpu, expected, on_stderr_line=count)


def verify_on_cpu(
    executor: Executor, target: TargetProfile, cpu: CpuProfile, expected: Expected, *, on_stderr_line: Callable[[str], None]
) -> dict[str, Evidence]:
    """Execute probe and selftest on one CPU.

    Raises:
        BundleDamagedError: the device program found a file that is not the one of the build.
        OtherFilesExecutedError: it executed other files than the expected ones.
        EngineError: the engine failed in between.
    """
    modes = tuple(expected.models)
    launch = executor.launch(cpu)
    if isinstance(launch, NotRunnable):
        return _all(modes, Evidence(cpu=cpu.name, verdict="not_run", reason=launch.reason))
    try:
        probed = executor.run(launch, ["probe", "--json"], on_stderr_line)
        if probed.exit_code not in (PASSED, WRONG):
            return _all(
                modes, Evidence(cpu=cpu.name, verdict="not_run", reason=f"the probe did not run: {_last_words(probed)}")
            )
        machine = read_probe(probed.stdout)
        doubt = distrust(machine, target, cpu)
        if doubt:
            return _all(modes, _seen(machine, cpu, executor).model_copy(update={"verdict": "not_run", "reason": doubt}))
        arguments = [argument for mode in modes for argument in ("--mode", mode)]
        result = executor.run(launch, ["selftest", "--json", *arguments], on_stderr_line)
    except ContainerTimeoutError as error:
        return _all(modes, Evidence(cpu=cpu.name, verdict="not_run", reason=error.message))
    if result.exit_code == DAMAGED:
        raise BundleDamagedError(_last_words(result), next_step="Restore the bundle from its .tar.gz, or build it again.")
    if result.exit_code not in (PASSED, WRONG):
        reason = f"the selftest did not run: {_last_words(result)}"
        return _all(modes, _seen(machine, cpu, executor).model_copy(update={"verdict": "failed", "reason": reason}))
    selftest = read_selftest(result.stdout)
    _require(selftest, expected, cpu)
    return _evidence(selftest, cpu, executor)


def _require(selftest: Selftest, expected: Expected, cpu: CpuProfile) -> None:
    """Refuse an answer about other files; a mode that was not started has executed none."""
    executed = {mode.name: mode for mode in selftest.modes}
    others = [
        name
        for name, digest in expected.models.items()
        if name not in executed
        or executed[name].model_sha256 not in (digest, None if executed[name].verdict == "failed" else digest)
    ]
    if selftest.bundle_sha256 != expected.bundle_sha256 or others:
        what = f"the model of {', '.join(others)}" if others else "runner.json"
        raise OtherFilesExecutedError(
            f"the device program on {cpu.name} executed other files than the bundle's: {what} has another SHA-256",
            next_step="Run the same command again; nothing of this run was recorded.",
        )


def distrust(machine: Machine, target: TargetProfile, cpu: CpuProfile) -> str:
    """Return why results from this machine do not count for this CPU; empty if they do."""
    if machine.machine != target.architecture.machine:
        return f"`uname -m` said {machine.machine}, not {target.architecture.machine}"
    wrong = [name for name, right in machine.known_answers.checks.items() if not right]
    if wrong:
        return f"its arithmetic is wrong: {', '.join(wrong)}"
    if machine.emulation == "unknown":
        return f"it could not be determined whether the CPU is emulated: {machine.emulation_reason}"
    if cpu.name == "native":
        return "" if machine.emulator is None else f"it is not native: {machine.emulator.name} runs it"
    if machine.emulator is None:
        return f"nothing emulates {cpu.name} there"
    try:
        version = Version(machine.emulator.version.split()[0])
    except InvalidVersion:
        return f"the emulator does not report its version ({machine.emulator.name} {machine.emulator.version})"
    if version < Version(target.verification.emulator_minimum):
        minimum = target.verification.emulator_minimum
        return f"{machine.emulator.name} {version} is older than {minimum}, from which on it computes correctly"
    lacking = [name for name in cpu.present if name not in machine.cpu.features]
    surplus = [name for name in cpu.absent if name in machine.cpu.features]
    if lacking or surplus:
        facts = ([f"it lacks {', '.join(lacking)}"] if lacking else []) + ([f"it has {', '.join(surplus)}"] if surplus else [])
        return f"the emulated CPU is not a {cpu.name}: {' and '.join(facts)}"
    return ""


def _seen(machine: Machine, cpu: CpuProfile, executor: Executor) -> Evidence:
    emulator = machine.emulator
    if machine.emulation == "unknown":
        runner = None
    elif emulator is None:
        runner = RunnerRecord(kind="native", name=machine.cpu.model, version="")
    else:
        runner = RunnerRecord(kind="emulator", name=emulator.name, version=emulator.version, sha256=emulator.sha256)
    return Evidence(
        cpu=cpu.name,
        verdict="not_run",
        machine=machine.machine,
        cpu_features=machine.cpu.features,
        place=executor.place,
        image_digest=executor.image_digest,
        runner=runner,
        python=machine.python,
        numpy=machine.numpy,
        onnxruntime=machine.onnxruntime,
    )


def _evidence(selftest: Selftest, cpu: CpuProfile, executor: Executor) -> dict[str, Evidence]:
    seen = _seen(selftest, cpu, executor)
    figures = {
        "samples",
        "model_sha256",
        "outputs_sha256",
        "sqnr_db",
        "top1_agreement",
        "boxes_agreement",
        "max_steps",
        "verdict",
        "reason",
    }
    return {
        mode.name: seen.model_copy(
            update={
                "bundle_sha256": selftest.bundle_sha256,
                "graph_optimization_level": selftest.graph_optimization_level,
                **{name: value for name, value in asdict(mode).items() if name in figures},
            }
        )
        for mode in selftest.modes
    }


def _all(modes: Sequence[str], evidence: Evidence) -> dict[str, Evidence]:
    return dict.fromkeys(modes, evidence)


def _last_words(result: RunResult) -> str:
    if result.death:
        return result.death
    errors = [line.removeprefix("error: ") for line in result.stderr.splitlines() if line.startswith("error: ")]
    return f"{(errors or result.stderr.splitlines()[-1:] or ['no message'])[0]} (exit code {result.exit_code})"
