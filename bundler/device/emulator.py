"""Which user-mode emulator runs this program, as seen from inside."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from .answers import Emulation, Emulator

__all__ = ["FoundEmulation", "find_emulator"]


@dataclass(frozen=True, kw_only=True)
class FoundEmulation:
    """Whether the CPU is emulated, by what, and as which CPU; `reason` says why the state is unknown."""

    state: Emulation
    reason: str = ""
    emulator: Emulator | None = None
    requested_cpu: str | None = None


def find_emulator() -> FoundEmulation:
    """Find the user-mode emulator that runs this program, and the CPU that it emulates.

    QEMU shows a program a forged /proc of itself, but not of others: the executable is read from the parent's /proc.
    "none" is reported only when that executable is this Python. The kernel hides the executable of a program that may be
    executed and not read.
    """
    parent = Path(f"/proc/{os.getppid()}")
    try:
        python, running_program = Path(sys.executable or ""), parent / "exe"
        if running_program.samefile(python):
            return FoundEmulation(state="none")
        program = running_program.read_bytes()
        words = (parent / "cmdline").read_bytes().decode(errors="replace").split("\0")
        if program == python.read_bytes():
            return FoundEmulation(state="none")
    except (OSError, ValueError) as error:
        return FoundEmulation(state="unknown", reason=f"the executable that runs this program cannot be read: {error}")
    named = re.search(rb"(qemu-[a-z0-9_]+) version ([^\n\0]+)", program)
    name, version = (part.decode() for part in named.groups()) if named else ("unknown", "unknown")
    requested = words[words.index("-cpu") + 1] if "-cpu" in words[:-1] else os.environ.get("QEMU_CPU")
    emulator = Emulator(name=name, version=version, sha256=hashlib.sha256(program).hexdigest())
    if not named:
        reason = f"{running_program.readlink()} runs this program, which is not this Python"
        return FoundEmulation(state="unknown", reason=reason, emulator=emulator, requested_cpu=requested)
    return FoundEmulation(state="emulated", emulator=emulator, requested_cpu=requested or f"default of {name}")
