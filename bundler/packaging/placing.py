"""Putting a finished bundle and its archive in their place: one transaction, which the next command completes after a kill."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bundler import console
from bundler.errors import BundlerError, OutOfSpaceError, OutputError
from bundler.interruption import shielded
from bundler.locking import is_held, lock, try_lock

__all__ = ["Leftover", "find_leftovers", "place", "recover", "recover_all", "remove_leftover", "workshop"]

JOURNAL = "journal.json"
LOCK = "lock"
_PLACE_LOCK = ".placing-lock"  # of a place, beside it
_SCHEMA = "edge-bundler/placing/1"
_NEW, _NEW_ARCHIVE, _EARLIER = "new", "new-archive", "earlier"  # in the folder of a transaction
_WAIT_SECONDS = 600.0  # placing takes seconds, where the disk has to write the files out first
_JOURNAL_BYTES = 65536
_SHORT_BYTES = 200
# A folder of a build or a transaction is `.NAME-RANDOM.work`; older versions had `.NAME-RANDOM` and `.NAME-old-RANDOM`.
_WORK = re.compile(r"\.(?P<name>.+)-[0-9a-f]{8}\.work", re.DOTALL)
_OLDER_WORK = re.compile(r"\.(?P<name>.+?)(?:-old)?-[a-z0-9_]{8}", re.DOTALL)
_FULL_BYTES = 4 << 20  # left on a disk that a graph did not fit on
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def workshop(directory: Path) -> Iterator[Path]:
    """Give a temporary folder on the file system of `directory`, beside it; it is gone when the block ends, however it ends.

    While the block runs, its file `lock` is locked: by that others see that the folder is in use.

    Raises:
        OutputError: the place cannot be written to.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(directory.parent, error) from error
    recover(directory)
    with _work_folder(directory) as folder:
        try:
            yield folder
        except Exception as error:
            said = isinstance(error, BundlerError) or (isinstance(error, OSError) and error.filename is not None)
            if not said and _is_full(folder):  # ONNX Runtime and torch do not say so
                raise OutOfSpaceError(str(directory.parent)) from error
            raise


def place(bundle: Path, directory: Path, *, archive: Path | None = None, archive_path: Path | None = None) -> None:
    """Move a finished folder, and its archive, into place; an earlier bundle there is replaced as a whole.

    Files get the mode 0644 and folders 0755 whatever the umask, programs 0755. The moves are written down in a journal first:
    if the process is killed between them, `recover` makes the others. If a move fails or is interrupted, the earlier bundle is
    put back. Of two processes that place at once, one waits for the other, and the last one's bundle stays.

    Args:
        bundle: on the file system of `directory`; gone afterwards.
        directory: the place of the folder.
        archive: on the same file system; gone afterwards.
        archive_path: the place of the archive, in the same folder as `directory`.

    Raises:
        OutputError: something in the way cannot be moved or replaced.
    """
    if archive_path is not None and archive_path.parent != directory.parent:
        msg = f"the journal names neighbours only: {archive_path} is not beside {directory}"
        raise ValueError(msg)
    try:
        _set_modes(bundle)
        _write_out(bundle)
        if archive is not None:
            archive.chmod(0o644)
            _write_out(archive)
        with _placing(directory), _work_folder(directory) as work:
            _recover(directory)
            _transact(bundle, directory, work, archive, archive_path)
    except OSError as error:
        if error.errno in _FULL_DISK:
            raise
        raise OutputError(
            f"{error.filename2 or error.filename or directory} cannot be replaced: {error.strerror}",
            next_step="Move away what is there, or give another place with --output DIR.",
        ) from error


def recover(directory: Path) -> None:
    """Complete the placing of a bundle at `directory` that was killed between two moves; usually there is nothing to do.

    Raises:
        OutputError: the moves cannot be made.
    """
    directory = directory.absolute()
    unfinished = next(_journals(directory), None) or _earlier_of_older_version(directory)
    if unfinished is None:
        return
    with _placing(directory):
        try:
            _recover(directory)
        except OSError as error:
            raise OutputError(
                f"the placing of {directory}, which was interrupted, cannot be completed: {error.strerror}",
                next_step="Make its folder writable, then run the same command again.",
            ) from error


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """A folder, or a lock, that a killed command left; `unplaced` is where the bundle in it is to be put (back)."""

    path: Path
    unplaced: Path | None


def recover_all(folder: Path) -> None:
    """Complete every placing in `folder` that was killed between two moves.

    Raises:
        OutputError: the folder cannot be read, or the moves cannot be made.
    """
    for leftover in find_leftovers(folder):
        if leftover.unplaced is not None:
            recover(leftover.unplaced)


def find_leftovers(folder: Path) -> tuple[Leftover, ...]:
    """Return what killed commands left in `folder`; what a living process holds is not among it.

    Raises:
        OutputError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be read: {error.strerror}", next_step="Give its place with --output DIR."
        ) from error
    leftovers = []
    for entry in found:
        path = folder / entry.name
        if entry.is_dir(follow_symlinks=False):
            if _is_work_folder(path) and not is_held(path / LOCK):
                leftovers.append(Leftover(path=path, unplaced=_unplaced(path)))
        elif entry.name.endswith(_PLACE_LOCK) and entry.is_file(follow_symlinks=False) and not is_held(path):
            leftovers.append(Leftover(path=path, unplaced=None))
    return tuple(leftovers)


def remove_leftover(leftover: Leftover) -> bool:
    """Put the bundle of a leftover in its place, and remove the folder; False where a process has taken it meanwhile.

    Raises:
        OutputError: it cannot be moved or removed.
    """
    if leftover.unplaced is not None:
        recover(leftover.unplaced)
    if not leftover.path.exists():
        return True
    is_lock = leftover.path.is_file()
    with try_lock(leftover.path if is_lock else leftover.path / LOCK) as held:
        if not held or is_lock:  # a lock that is released is removed
            return held
        try:
            shutil.rmtree(leftover.path)
        except OSError as error:
            raise OutputError(f"{leftover.path} cannot be removed: {error.strerror}", next_step="Remove it by hand.") from error
    return True


@contextmanager
def _work_folder(directory: Path) -> Iterator[Path]:
    """Make a locked folder beside `directory`, and remove it with all that is in it."""
    while True:
        folder = directory.with_name(f".{_short(directory.name)}-{secrets.token_hex(4)}.work")
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise _unwritable(directory.parent, error) from error
        try:
            with try_lock(folder / LOCK) as held:
                if held:  # otherwise `doctor --clean` was faster
                    yield folder
                    return
        finally:
            with shielded():
                shutil.rmtree(folder, ignore_errors=True)


def _placing(directory: Path) -> AbstractContextManager[None]:
    """Hold the lock of a place."""
    return lock(
        directory.with_name(f".{_short(directory.name)}{_PLACE_LOCK}"),
        seconds=_WAIT_SECONDS,
        on_wait=lambda: console.step(f"Waiting for another process that is placing {directory}"),
    )


def _transact(bundle: Path, directory: Path, work: Path, archive: Path | None, archive_path: Path | None) -> None:
    """Make the moves; where one fails, or is interrupted, take them back."""
    moves = [(bundle, work / _NEW)]
    if archive is not None and archive_path is not None:
        moves.append((archive, work / _NEW_ARCHIVE))
    try:
        for source, destination in moves:
            source.rename(destination)
        _write_journal(work, directory, archive_path if archive is not None else None)
        _finish(work, directory, archive_path)
    except BaseException:
        with shielded():
            _take_back(work, directory)
            for source, destination in moves:
                if destination.exists():
                    destination.rename(source)
        raise


def _finish(work: Path, directory: Path, archive_path: Path | None) -> None:
    """Make the moves that were not made yet. Each is one rename: a kill leaves all before it made, and none after it."""
    new, new_archive, earlier = work / _NEW, work / _NEW_ARCHIVE, work / _EARLIER
    if new.exists():
        if os.path.lexists(directory):
            directory.rename(earlier)
        new.rename(directory)
    if new_archive.exists() and archive_path is not None:
        new_archive.replace(archive_path)
    _write_out_folder(directory.parent)
    (work / JOURNAL).unlink()


def _take_back(work: Path, directory: Path) -> None:
    """Put the earlier bundle back, unless all moves were made."""
    new, earlier, journal = work / _NEW, work / _EARLIER, work / JOURNAL
    if not journal.exists():
        return
    if new.exists() or (work / _NEW_ARCHIVE).exists():
        if not new.exists() and directory.exists():
            directory.rename(new)
        if os.path.lexists(earlier):
            earlier.rename(directory)
    journal.unlink()


def _recover(directory: Path) -> None:
    """Complete the transactions of a place whose process is gone; the lock of the place is held."""
    for work, journal in _journals(directory):
        archive_path = directory.with_name(journal.archive) if journal.archive else None
        if os.path.lexists(work / _NEW) and os.path.lexists(work / _EARLIER) and os.path.lexists(directory):
            # Somebody else has put a bundle there since.
            (work / JOURNAL).unlink()
        else:
            try:
                _finish(work, directory, archive_path)
            except OSError as error:
                if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                    raise
                _take_back(work, directory)
                console.warn(f"{directory}: the placing that was interrupted cannot be completed and was taken back: {error}")
            else:
                console.step(f"Completed the placing of {directory}, which was interrupted")
        shutil.rmtree(work, ignore_errors=True)
    earlier = _earlier_of_older_version(directory)
    if earlier is not None:
        earlier.rename(directory)
        console.step(f"Put {directory} back, whose replacement was interrupted")


@dataclass(frozen=True)
class _Journal:
    """The names of a transaction, both in one folder."""

    directory: str
    archive: str | None


def _write_journal(work: Path, directory: Path, archive_path: Path | None) -> None:
    names = {"schema": _SCHEMA, "directory": directory.name, "archive": archive_path.name if archive_path else None}
    beside = work / f"{JOURNAL}.new"
    with beside.open("w", encoding="utf-8") as file:
        json.dump(names, file)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(work / JOURNAL)
    _write_out_folder(work)


def _journals(directory: Path) -> Iterator[tuple[Path, _Journal]]:
    """Yield the unfinished transactions of a place, with their folders."""
    prefix = f".{_short(directory.name)}-"
    try:
        with os.scandir(directory.parent) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False)]
    except OSError:
        return  # what is there cannot be read; whoever needs it says so
    for name in sorted(names):
        work = directory.with_name(name)
        journal = _read_journal(work) if _WORK.fullmatch(name) else None
        if journal is not None and journal.directory == directory.name:
            yield work, journal


def _read_journal(work: Path) -> _Journal | None:
    """Return a folder's journal; None where there is none, or none of ours. It may name nothing but its own neighbours."""
    try:
        descriptor = os.open(work / JOURNAL, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with open(descriptor, "rb") as file:  # noqa: PTH123  of a descriptor: a link or a FIFO must not be opened
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or os.fstat(descriptor).st_uid != os.geteuid():
            return None
        try:
            names = json.loads(file.read(_JOURNAL_BYTES))
            directory, archive = names["directory"], names["archive"]
        except (ValueError, TypeError, KeyError):
            return None
    if names.get("schema") != _SCHEMA or not isinstance(directory, str) or _short(directory) != _name_of(work):
        return None
    if not _is_name(directory) or not (archive is None or (_is_name(archive) and archive.endswith(".tar.gz"))):
        return None
    return _Journal(directory=directory, archive=archive)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _unplaced(work: Path) -> Path | None:
    journal = _read_journal(work) if _WORK.fullmatch(work.name) else None
    if journal is not None:
        return work.with_name(journal.directory)
    directory = work.with_name(_name_of(work))
    earlier = _earlier_of_older_version(directory)
    return directory if earlier is not None and earlier.parent == work else None


def _earlier_of_older_version(directory: Path) -> Path | None:
    """Return the bundle that was moved aside by an older version, which was killed before the new one was in its place."""
    if os.path.lexists(directory):
        return None
    found = (path / directory.name for path in directory.parent.glob(f".{glob.escape(directory.name)}-old-????????"))
    return next((path for path in found if (path / "manifest.json").is_file()), None)


def _is_work_folder(path: Path) -> bool:
    """Say whether a folder is one of ours: by its name, and with a name of older versions by what is in it too."""
    if _WORK.fullmatch(path.name):
        return True
    older = _OLDER_WORK.fullmatch(path.name)
    if older is None:
        return False
    try:
        contents = {entry.name for entry in path.iterdir()} - {LOCK}
    except OSError:
        return False
    return (
        not contents
        or {"application.tar", "image.tar"} <= contents
        or any((path / older["name"] / inside).exists() for inside in ("models", "manifest.json"))
    )


def _name_of(work: Path) -> str:
    found = _WORK.fullmatch(work.name) or _OLDER_WORK.fullmatch(work.name)
    return found["name"] if found else ""


def _short(name: str) -> str:
    """Return a name that leaves room for what is added to it: file systems allow 255 bytes."""
    encoded = os.fsencode(name)
    if len(encoded) <= _SHORT_BYTES:
        return name
    return f"{encoded[:_SHORT_BYTES].decode(errors='ignore')}-{hashlib.sha256(encoded).hexdigest()[:8]}"


def _set_modes(bundle: Path) -> None:
    """Give everything in a bundle the mode that it has in the archive, whatever the umask was."""
    bundle.chmod(0o755)
    for path in bundle.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _is_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < _FULL_BYTES


def _write_out(path: Path) -> None:
    """Wait until a file, or everything in a folder, is on the disk."""
    for file in path.rglob("*") if path.is_dir() else (path,):
        if file.is_file():
            with file.open("rb") as content:
                os.fsync(content.fileno())


def _write_out_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(folder: Path, error: OSError) -> OutputError:
    if error.errno in _FULL_DISK:
        return OutOfSpaceError(str(folder))
    reason = f"{error.filename} is no folder" if isinstance(error, FileExistsError) else error.strerror
    return OutputError(f"{folder} cannot be written to: {reason}", next_step="Give another place with --output DIR.")
