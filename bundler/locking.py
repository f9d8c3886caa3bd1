"""Locks between processes: flock(2) on an empty file, which the kernel releases when the process ends for any reason."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bundler.errors import OutOfSpaceError, OutputError
from bundler.interruption import defer_signals

__all__ = ["is_held", "lock", "try_lock"]

_POLL_SECONDS = 0.1
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def lock(path: Path, *, seconds: float, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock `path` while the block runs; the file is removed afterwards.

    `on_wait` is called once if another process holds it.

    Raises:
        OutputError: the file cannot be created or locked, or another process still held it after `seconds`.
    """
    deadline = time.monotonic() + seconds
    waited = False
    while True:
        with try_lock(path) as held:
            if held:
                yield
                return
        if not waited:
            on_wait()
            waited = True
        if time.monotonic() >= deadline:
            raise OutputError(
                f"another process has held {path} for {seconds:.0f} s",
                next_step=f"`fuser {path}` shows which one; wait for it or end it, then run the same command again.",
            )
        time.sleep(_POLL_SECONDS)


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Yield whether the lock was free; if so, it is held while the block runs, and the file is removed afterwards.

    Raises:
        OutputError: the file cannot be created or locked.
    """
    descriptor, held = -1, False
    try:
        with defer_signals():  # a signal in between would leave the file
            descriptor = _open(path)
            held = _take(descriptor, path)
        yield held
    finally:
        with defer_signals():
            if held:
                with suppress(OSError):  # the directory was removed, with the lock file
                    path.unlink()
            if descriptor >= 0:
                os.close(descriptor)


def is_held(path: Path) -> bool:
    """Return whether a running process holds the lock; True too if the file cannot be opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _cannot(path, error) from error


def _take(descriptor: int, path: Path) -> bool:
    """Lock the file, and check that the path still refers to it: the last holder may have removed it meanwhile."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise _cannot(path, error) from error
        return False
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _cannot(path: Path, error: OSError) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfSpaceError(str(path.parent))
    return OutputError(
        f"{path.parent} cannot be written to: {path.name} cannot be locked ({error.strerror})",
        next_step="Use a writable directory on a file system with locks: --output DIR, or XDG_CACHE_HOME=DIR for the cache.",
    )
