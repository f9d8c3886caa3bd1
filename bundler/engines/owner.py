"""The process that owns a container or a temporary image, as text in a label or tag."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bundler.files.sha256 import oci_digest

__all__ = ["LABEL", "OWNER_LABEL", "TEMPORARY", "Owner", "temporary_reference"]

LABEL = "edge-bundler"  # `docker ps --all --filter label=edge-bundler=run` lists the containers of this program
OWNER_LABEL = "edge-bundler.owner"
TEMPORARY = "edge-bundler-temporary"  # `docker images 'edge-bundler-temporary/*'` lists its temporary images

_TEXT = re.compile(r"([0-9a-f]{8})\.([0-9a-f]{8})\.(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True)
class Owner:
    """A process: its machine, the machine's boot, the PID namespace, the PID, and its start time in clock ticks since boot.

    PIDs are reused; with the start time they are unique.
    """

    machine: str
    boot: str
    namespace: int
    pid: int
    started: int

    def __str__(self) -> str:
        """Return a text that is valid as an image's tag."""
        return f"{self.machine}.{self.boot}.{self.namespace}.{self.pid}.{self.started}"

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """Return the owner with the given `str`; None for other texts."""
        found = _TEXT.fullmatch(text)
        return cls(found[1], found[2], int(found[3]), int(found[4]), int(found[5])) if found else None

    @classmethod
    def current(cls) -> Owner:
        """Return this process."""
        machine, boot, namespace = _here()
        return cls(machine, boot, namespace, os.getpid(), _started(os.getpid()) or 0)

    def is_alive(self) -> bool | None:
        """Return whether the process runs; None if that is unknown: on another machine, or in another container."""
        machine, boot, namespace = _here()
        if self.machine != machine or not namespace:
            return None
        if self.boot != boot:
            return False
        if self.namespace != namespace:
            return None
        return _started(self.pid) == self.started


def temporary_reference(name: str) -> str:
    """Return a reference for an image that this process removes; after a kill, `bundler doctor --clean` does.

    Args:
        name: a path component of a repository name, in lower case.
    """
    return f"{TEMPORARY}/{name}:{Owner.current()}"


@cache
def _here() -> tuple[str, str, int]:
    """Return identifiers of this machine, its boot and this PID namespace."""
    machine = _read(Path("/etc/machine-id")) or socket.gethostname()
    boot = _read(Path("/proc/sys/kernel/random/boot_id"))
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        namespace = 0
    return _digest(machine), _digest(boot), namespace


def _started(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since boot; None if it has ended."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()  # after the command name, which may contain spaces
    return int(fields[19]) if len(fields) > 19 and fields[0] not in "ZX" else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _digest(text: str) -> str:
    return oci_digest(text.encode()).removeprefix("sha256:")[:8]
