"""Running mmdebstrap, pip and QEMU: in a session of their own, bounded in time, and ended with all that they started."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bundler.interruption import shielded

__all__ = ["full_disk", "run_helper"]

_FULL_BYTES = 8 << 20  # that are left on a disk where a program could not write
_END_SECONDS = 10.0  # in which mmdebstrap removes its temporary folder


def run_helper(
    command: Sequence[str], *, seconds: float, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program without input and return its exit code and output, whatever the code is.

    Its session is its own: mmdebstrap sends SIGHUP to its whole process group where it fails, and Ctrl-C of a terminal is for
    this program to handle. Files that it makes do not depend on the umask.

    Raises:
        subprocess.TimeoutExpired: it took longer than `seconds`, and was ended with all that it had started.
        FileNotFoundError, PermissionError: it cannot be started.
    """
    with subprocess.Popen(
        command,
        env=None if environment is None else {**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        umask=0o022,
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=seconds)
        except BaseException:
            with shielded():
                _end(process)
            raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def _end(process: subprocess.Popen[str]) -> None:
    """Ask the whole group to end, and kill what is left of it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_END_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)


def full_disk(messages: str, folders: Sequence[Path]) -> Path | None:
    """Return which of the folders that a program wrote to is on a full disk, if its messages say that one is."""
    if os.strerror(errno.ENOSPC) not in messages and os.strerror(errno.EDQUOT) not in messages:
        return None
    return min(folders, key=lambda folder: shutil.disk_usage(folder).free)
