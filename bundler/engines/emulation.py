"""How programs run as a given CPU: natively, with QEMU in user mode, or with the kernel's binfmt_misc handler."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from packaging.version import Version

from bundler.architecture import Architecture
from bundler.engines.container_engine import Engine
from bundler.engines.helper_program import run_helper
from bundler.targets import CpuProfile, TargetProfile

__all__ = ["BinfmtHandler", "Launch", "NotRunnable", "binfmt_handler", "decide_launch", "emulator_problem"]

BINFMT = Path("/proc/sys/fs/binfmt_misc")

_NATIVE = "native"
_ELF_MACHINES = {0x3E: Architecture.AMD64, 0xB7: Architecture.ARM64}
_ELF_INTERPRETER = 3  # a program header that only dynamically linked programs have
_SET_UP = "`make engine` (docker/setup-engine.sh) installs and registers QEMU, or prints the commands to do so."


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How to start a program so that it runs as a given CPU.

    Attributes:
        runner: recorded in the evidence: `native`, or the emulator and its version.
        prefix: arguments before the command.
        environment: variables of the process.
        programs: files of this machine to copy into the container before it starts, by their path there.
    """

    runner: str
    prefix: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    programs: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class NotRunnable:
    """Why programs cannot run as a given CPU here, and the next step."""

    reason: str
    next_step: str


@dataclass(frozen=True, kw_only=True)
class BinfmtHandler:
    """The kernel's binfmt_misc registration for programs of a foreign architecture.

    `version` is None if the interpreter is not on this machine's file system (registered from a container). `stale` means that
    the file is newer than the registration: with flag F, the kernel still runs the older one.
    """

    interpreter: Path
    enabled: bool
    flags: str
    version: Version | None
    stale: bool


def decide_launch(engine: Engine | None, profile: TargetProfile, cpu: CpuProfile) -> Launch | NotRunnable:
    """Decide how the target's programs run as `cpu`: in a container of `engine`, or as processes of this host without one."""
    here = engine.architecture if engine else Architecture.host()
    if profile.architecture is not here:
        return _foreign(engine, profile, cpu)
    if cpu.name == _NATIVE:
        return Launch(runner=_NATIVE)
    return _user_mode(engine, profile, cpu)


def emulator_problem(engine: Engine, architecture: Architecture, minimum: Version, *, binfmt: Path = BINFMT) -> str | None:
    """Return why the engine cannot run programs of a foreign architecture, according to this machine's kernel; None if it can.

    None too if the engine runs on another kernel, whose handlers cannot be read from here.
    """
    if not engine.shares_kernel:
        return None
    handler = binfmt_handler(architecture, binfmt=binfmt)
    if handler is None:
        return f"no handler for {architecture.machine} programs is registered (binfmt_misc)"
    return _handler_problem(handler, minimum)


def binfmt_handler(architecture: Architecture, *, binfmt: Path = BINFMT) -> BinfmtHandler | None:
    """Return this kernel's handler for programs of `architecture`; None if there is none."""
    entry = binfmt / f"qemu-{architecture.machine}"
    if not entry.is_file():
        return None
    text = entry.read_text(encoding="utf-8")
    interpreter = Path(_field(text, r"^interpreter (.*)$"))
    on_disk = interpreter.is_file()
    return BinfmtHandler(
        interpreter=interpreter,
        enabled=text.startswith("enabled"),
        flags=_field(text, r"^flags: (.*)$"),
        version=_version(interpreter) if on_disk else None,
        # The modification time of an entry is the time of its registration.
        stale=on_disk and interpreter.stat().st_ctime_ns > entry.stat().st_mtime_ns,
    )


def _handler_problem(handler: BinfmtHandler, minimum: Version) -> str | None:
    if not handler.enabled:
        return f"the handler {handler.interpreter} is disabled (binfmt_misc)"
    if "F" not in handler.flags:
        return f"{handler.interpreter} is registered without flag F, so containers cannot find it (binfmt_misc)"
    if handler.stale:
        return f"{handler.interpreter} was upgraded after its registration; the kernel still runs the old version (binfmt_misc)"
    if handler.version and handler.version < minimum:
        return _too_old(handler.interpreter, handler.version, minimum)
    return None


def _foreign(engine: Engine | None, profile: TargetProfile, cpu: CpuProfile) -> Launch | NotRunnable:
    if engine is None:
        reason = f"{profile.platform} programs need a container engine with emulation, and none answers"
        return NotRunnable(reason=reason, next_step=_SET_UP)
    if cpu.name == _NATIVE:
        reason = f"the engine runs on {engine.architecture.platform}, which is not {profile.platform}"
        return NotRunnable(reason=reason, next_step="Set DOCKER_HOST or a Docker context to an engine on the device.")
    minimum = Version(profile.verification.emulator_minimum)
    problem = emulator_problem(engine, profile.architecture, minimum)
    if problem:
        return NotRunnable(reason=problem, next_step=_SET_UP)
    handler = binfmt_handler(profile.architecture) if engine.shares_kernel else None
    version = f"QEMU {handler.version}" if handler and handler.version else "QEMU of unknown version"
    return Launch(runner=f"{version} (binfmt_misc)", environment={"QEMU_CPU": cpu.name})


def _user_mode(engine: Engine | None, profile: TargetProfile, cpu: CpuProfile) -> Launch | NotRunnable:
    name = f"qemu-{profile.architecture.machine}"
    found = shutil.which(f"{name}-static") or shutil.which(name)
    if found is None:
        return NotRunnable(reason=f"{name}-static is not installed; it is required to emulate this CPU", next_step=_SET_UP)
    program = Path(found)
    version = _version(program)
    minimum = Version(profile.verification.emulator_minimum)
    if version is None or version < minimum:
        return NotRunnable(reason=_too_old(program, version, minimum), next_step=_SET_UP)
    runner = f"QEMU {version} (user mode)"
    if engine is None:
        return Launch(runner=runner, prefix=(str(program), "-cpu", cpu.name))
    if not _is_static(program, engine.architecture):
        reason = f"{program} is not a static program for {engine.architecture.platform} and cannot run in a container"
        return NotRunnable(reason=reason, next_step="Install the package qemu-user-static.")
    inside = f"/{name}-static"
    return Launch(runner=runner, prefix=(inside, "-cpu", cpu.name), programs={inside: program})


def _too_old(program: Path, version: Version | None, minimum: Version) -> str:
    found = version or "of unknown version"
    return f"{program} is QEMU {found}; {minimum} or newer is required: older ones crash or miscompute"


def _version(program: Path) -> Version | None:
    try:
        run = run_helper([str(program), "--version"], seconds=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"version (\d+(?:\.\d+)+)", run.stdout)
    return Version(found[1]) if found else None


def _is_static(program: Path, architecture: Architecture) -> bool:
    """Return whether a file is a 64-bit ELF program of that architecture without a dynamic loader."""
    data = program.read_bytes()
    if data[:5] != b"\x7fELF\x02":
        return False
    (machine,) = struct.unpack_from("<H", data, 18)
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    kinds = (struct.unpack_from("<I", data, table + index * size)[0] for index in range(count))
    return _ELF_MACHINES.get(machine) is architecture and _ELF_INTERPRETER not in kinds


def _field(text: str, pattern: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else ""
