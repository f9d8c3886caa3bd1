from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.version import Version

from bundler.architecture import Architecture
from bundler.engines.container_engine import Engine
from bundler.engines.emulation import Launch, NotRunnable, binfmt_handler, decide_launch, emulator_problem
from bundler.targets import CpuProfile, TargetProfile

Program = Callable[[str, str], Path]
EngineOn = Callable[..., Engine]
Problem = Callable[[], str | None]

NATIVE = CpuProfile(name="native", present=(), absent=())
HASWELL = CpuProfile(name="Haswell", present=(), absent=())
CORTEX = CpuProfile(name="cortex-a53", present=(), absent=())
QEMU_10 = 'echo "qemu version 10.0.2 (Debian 1:10.0.2)"'


def _static_program(path: Path, *, machine: int, dynamic: bool = False) -> Path:
    """A file with the ELF header and the one program header of a program."""
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    path.write_bytes(header + struct.pack("<I52x", 3 if dynamic else 1))
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("kind", ["amd64", "arm64"])
def test_native_needs_no_emulator_on_an_engine_of_the_target_architecture(
    kind: str, engine_on: EngineOn, request: pytest.FixtureRequest
) -> None:
    profile: TargetProfile = request.getfixturevalue(kind)
    launch = decide_launch(engine_on(profile.architecture), profile, NATIVE)
    assert launch == Launch(runner="native", prefix=(), environment={}, programs={})


def test_native_on_a_foreign_engine_is_not_runnable(engine_on: EngineOn, arm64: TargetProfile) -> None:
    verdict = decide_launch(engine_on(Architecture.AMD64), arm64, NATIVE)
    assert isinstance(verdict, NotRunnable)
    assert "linux/amd64" in verdict.reason
    assert "linux/arm64" in verdict.reason


def test_a_remote_engine_gets_the_cpu_in_the_environment(engine_on: EngineOn, arm64: TargetProfile) -> None:
    launch = decide_launch(engine_on(Architecture.AMD64, shares_kernel=False), arm64, CORTEX)
    assert isinstance(launch, Launch)
    assert launch.environment == {"QEMU_CPU": "cortex-a53"}
    assert launch.prefix == ()
    assert "unknown version" in launch.runner


def test_a_foreign_target_without_an_engine_is_not_runnable(arm64: TargetProfile, amd64: TargetProfile) -> None:
    foreign = arm64 if Architecture.host() is Architecture.AMD64 else amd64
    verdict = decide_launch(None, foreign, CORTEX)
    assert isinstance(verdict, NotRunnable)
    assert "container engine" in verdict.reason


@pytest.mark.skipif(Architecture.host() is not Architecture.AMD64, reason="Haswell is an x86 CPU")
def test_user_mode_on_this_host_uses_the_installed_program(program: Program, amd64: TargetProfile) -> None:
    qemu = program("qemu-x86_64-static", QEMU_10)
    launch = decide_launch(None, amd64, HASWELL)
    assert launch == Launch(runner="QEMU 10.0.2 (user mode)", prefix=(str(qemu), "-cpu", "Haswell"))


@pytest.mark.skipif(shutil.which("qemu-x86_64-static") is None, reason="needs qemu-user-static")
@pytest.mark.skipif(Architecture.host() is not Architecture.AMD64, reason="qemu-x86_64-static has to be for the engine")
def test_user_mode_in_a_container_copies_the_program(engine_on: EngineOn, amd64: TargetProfile) -> None:
    launch = decide_launch(engine_on(Architecture.AMD64), amd64, HASWELL)
    assert isinstance(launch, Launch), launch
    assert launch.prefix == ("/qemu-x86_64-static", "-cpu", "Haswell")
    assert launch.environment == {}
    assert list(launch.programs) == ["/qemu-x86_64-static"]


@pytest.mark.usefixtures("program")
def test_without_qemu_the_cpu_is_not_runnable(engine_on: EngineOn, amd64: TargetProfile) -> None:
    verdict = decide_launch(engine_on(Architecture.AMD64), amd64, HASWELL)
    assert isinstance(verdict, NotRunnable)
    assert "qemu-x86_64-static is not installed" in verdict.reason
    assert "make engine" in verdict.next_step


def test_an_old_qemu_is_refused_with_its_version(program: Program, engine_on: EngineOn, amd64: TargetProfile) -> None:
    program("qemu-x86_64-static", 'echo "qemu-x86_64 version 7.2.22 (Debian 1:7.2)"')
    verdict = decide_launch(engine_on(Architecture.AMD64), amd64, HASWELL)
    assert isinstance(verdict, NotRunnable)
    assert "QEMU 7.2.22; 10.0 or newer is required" in verdict.reason


def test_a_program_that_needs_libraries_is_not_copied_into_a_container(
    program: Program, engine_on: EngineOn, amd64: TargetProfile
) -> None:
    program("qemu-x86_64", QEMU_10)  # a shell script is no static ELF program
    verdict = decide_launch(engine_on(Architecture.AMD64), amd64, HASWELL)
    assert isinstance(verdict, NotRunnable)
    assert "not a static program for linux/amd64" in verdict.reason


@pytest.mark.parametrize(
    ("machine", "dynamic", "alone"),
    [(0x3E, False, True), (0xB7, False, False), (0x3E, True, False)],
    ids=["static", "of another architecture", "dynamic"],
)
def test_only_elf_programs_without_a_loader_are_static(tmp_path: Path, machine: int, dynamic: bool, alone: bool) -> None:
    from bundler.engines.emulation import _is_static

    path = _static_program(tmp_path / "qemu", machine=machine, dynamic=dynamic)
    assert _is_static(path, Architecture.AMD64) is alone


def _register(binfmt: Path, interpreter: Path, *, state: str = "enabled", flags: str = "POF") -> None:
    binfmt.mkdir(exist_ok=True)
    entry = binfmt / "qemu-aarch64"
    entry.write_text(f"{state}\ninterpreter {interpreter}\nflags: {flags}\noffset 0\nmagic 7f454c46\n")


@pytest.fixture
def problem(engine_on: EngineOn, tmp_path: Path) -> Problem:
    engine = engine_on(Architecture.AMD64)
    return lambda: emulator_problem(engine, Architecture.ARM64, Version("10.0"), binfmt=tmp_path / "binfmt")


def test_a_valid_handler_is_no_problem(problem: Problem, program: Program, tmp_path: Path) -> None:
    _register(tmp_path / "binfmt", program("qemu-aarch64-static", QEMU_10))
    assert problem() is None
    handler = binfmt_handler(Architecture.ARM64, binfmt=tmp_path / "binfmt")
    assert handler is not None
    assert (handler.version, handler.flags, handler.enabled) == (Version("10.0.2"), "POF", True)


def test_no_handler_is_named(problem: Problem) -> None:
    assert "no handler for aarch64" in str(problem())


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"state": "disabled"}, "is disabled"), ({"flags": "PO"}, "without flag F")],
)
def test_a_handler_that_containers_cannot_use_is_named(
    problem: Problem, program: Program, tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    _register(tmp_path / "binfmt", program("qemu-aarch64-static", QEMU_10), **changes)
    assert words in str(problem())


def test_an_upgrade_after_the_registration_is_detected(problem: Problem, program: Program, tmp_path: Path) -> None:
    interpreter = program("qemu-aarch64-static", QEMU_10)
    _register(tmp_path / "binfmt", interpreter)
    os.utime(tmp_path / "binfmt" / "qemu-aarch64", (1, 1))
    assert "upgraded after its registration" in str(problem())


def test_an_old_registered_emulator_is_detected(problem: Problem, program: Program, tmp_path: Path) -> None:
    _register(tmp_path / "binfmt", program("qemu-aarch64-static", 'echo "qemu-aarch64 version 8.2.2"'))
    assert "QEMU 8.2.2" in str(problem())


def test_an_interpreter_on_another_file_system_is_accepted_here(problem: Problem, tmp_path: Path) -> None:
    _register(tmp_path / "binfmt", Path("/usr/bin/of-another-container"))
    assert problem() is None


def test_the_handlers_of_a_remote_engine_are_not_checked_here(engine_on: EngineOn, tmp_path: Path) -> None:
    remote = engine_on(Architecture.AMD64, shares_kernel=False)
    assert emulator_problem(remote, Architecture.ARM64, Version("10.0"), binfmt=tmp_path) is None
