"""Run mmdebstrap, pip and QEMU as subprocesses: in their own session, with a time limit, and terminated with their children."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bundler.interruption import defer_signals

__all__ = ["full_disk", "run_helper"]

_END_SECONDS = 10.0  # for mmdebstrap to remove its temporary directory


def run_helper(
    command: Sequence[str], *, seconds: float, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program without input and return its exit code and output; a nonzero exit code raises nothing.

    It gets its own session: mmdebstrap sends SIGHUP to its process group when it fails, and Ctrl-C in a terminal is handled by
    this process. Its umask is 022.

    Raises:
        subprocess.TimeoutExpired: it took longer than `seconds` and was terminated with its children.
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
            with defer_signals():
                _end(process)
            raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def _end(process: subprocess.Popen[str]) -> None:
    """Send SIGTERM to the process group, then SIGKILL to the processes that are left."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_END_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)


def full_disk(messages: str, folders: Sequence[Path]) -> Path | None:
    """Return the folder with the least free space if a program's messages report a full disk, otherwise None."""
    if os.strerror(errno.ENOSPC) not in messages and os.strerror(errno.EDQUOT) not in messages:
        return None
    return min(folders, key=lambda folder: shutil.disk_usage(folder).free)
