"""The process that a container or a temporary image belongs to, as a text that the engine keeps with it."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["LABEL", "OWNER_LABEL", "TEMPORARY", "Owner", "temporary_reference"]

LABEL = "edge-bundler"  # `docker ps --all --filter label=edge-bundler=run` lists the containers of this program
OWNER_LABEL = "edge-bundler.owner"
TEMPORARY = "edge-bundler-temporary"  # `docker images 'edge-bundler-temporary/*'` lists its temporary images

_TEXT = re.compile(r"([0-9a-f]{8})\.([0-9a-f]{8})\.(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True)
class Owner:
    """A process: its machine, that machine's boot, its PID namespace, its number there, and the time it was started.

    Numbers are given out again; together with the time of the start (clock ticks since boot) they are unique.
    """

    machine: str
    boot: str
    namespace: int
    pid: int
    started: int

    def __str__(self) -> str:
        """Return it in the alphabet of an image's tag."""
        return f"{self.machine}.{self.boot}.{self.namespace}.{self.pid}.{self.started}"

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """Return what `str` was of; None for any other text."""
        found = _TEXT.fullmatch(text)
        return cls(found[1], found[2], int(found[3]), int(found[4]), int(found[5])) if found else None

    @classmethod
    def current(cls) -> Owner:
        """Return this process."""
        machine, boot, namespace = _here()
        return cls(machine, boot, namespace, os.getpid(), _started(os.getpid()) or 0)

    def is_alive(self) -> bool | None:
        """Say whether the process still runs; None where that cannot be seen: on another machine, in another container."""
        machine, boot, namespace = _here()
        if self.machine != machine or not namespace:
            return None
        if self.boot != boot:
            return False
        if self.namespace != namespace:
            return None
        return _started(self.pid) == self.started


def temporary_reference(name: str) -> str:
    """Return a name for an image that this process removes again; after a kill, `bundler doctor --clean` does.

    Args:
        name: one component of a repository's name, lower case.
    """
    return f"{TEMPORARY}/{name}:{Owner.current()}"


@cache
def _here() -> tuple[str, str, int]:
    """Return what stands for this machine, its boot and this PID namespace."""
    machine = _read(Path("/etc/machine-id")) or socket.gethostname()
    boot = _read(Path("/proc/sys/kernel/random/boot_id"))
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        namespace = 0
    return _digest(machine), _digest(boot), namespace


def _started(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since boot; None where there is none, or only a zombie of it."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()  # behind its name, which may hold anything
    return int(fields[19]) if len(fields) > 19 and fields[0] not in "ZX" else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
