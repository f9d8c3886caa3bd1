"""Installation of a finished bundle and its archive in the output directory: one transaction with a journal.

If the process is killed between two renames, the next command completes the transaction.
"""

from __future__ import annotations

import errno
import glob
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
from bundler.files.atomic_write import DISK_FULL, atomic_write, sync_directory, sync_files
from bundler.files.sha256 import oci_digest
from bundler.interruption import defer_signals
from bundler.locking import is_held, lock, try_lock

__all__ = [
    "Leftover",
    "complete_installation",
    "complete_installations",
    "find_leftovers",
    "install_bundle",
    "remove_leftover",
    "staging_directory",
]

JOURNAL = "journal.json"
LOCK = "lock"
_INSTALL_LOCK = ".placing-lock"  # suffix; the file is beside the installed bundle
_SCHEMA = "edge-bundler/placing/1"
_NEW, _NEW_ARCHIVE, _EARLIER = "new", "new-archive", "earlier"  # names in the directory of a transaction
_WAIT_SECONDS = 600.0  # an installation takes seconds, most of them to write the files to the disk
_JOURNAL_BYTES = 65536
_SHORT_BYTES = 200
# The name of a directory of a build or a transaction is `.NAME-RANDOM.work`; of older versions it is `.NAME-RANDOM` or
# `.NAME-old-RANDOM`.
_WORK = re.compile(r"\.(?P<name>.+)-[0-9a-f]{8}\.work", re.DOTALL)
_OLDER_WORK = re.compile(r"\.(?P<name>.+?)(?:-old)?-[a-z0-9_]{8}", re.DOTALL)
_FULL_BYTES = 4 << 20  # with less free space than this, a failed write of a graph means that the disk is full


@contextmanager
def staging_directory(directory: Path) -> Iterator[Path]:
    """Yield a new staging directory beside `directory`, on the same file system; it is removed when the block ends.

    An interrupted installation at `directory` is completed first. While the block runs, the file `lock` in the new directory is
    locked, which shows other processes that the directory is in use.

    Raises:
        OutputError: the parent of `directory` cannot be written.
        OutOfSpaceError: the block failed and the disk is full.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(directory.parent, error) from error
    complete_installation(directory)
    with _work_folder(directory) as folder:
        try:
            yield folder
        except Exception as error:
            is_specific = isinstance(error, BundlerError) or (isinstance(error, OSError) and error.filename is not None)
            if not is_specific and _is_full(folder):  # ONNX Runtime and torch do not report the cause
                raise OutOfSpaceError(str(directory.parent)) from error
            raise


def install_bundle(bundle: Path, directory: Path, *, archive: Path | None = None, archive_path: Path | None = None) -> None:
    """Install a finished bundle at `directory` and its archive at `archive_path`; an earlier bundle is replaced as a whole.

    Modes are set whatever the umask: 0644 for files, 0755 for directories and programs. A journal of the renames is written
    first: if the process is killed between them, `complete_installation` completes them. If a rename fails or is
    interrupted, the earlier bundle is restored. Of two processes that install at `directory` at once, one waits for the other,
    and the bundle of the last one stays.

    Args:
        bundle: directory on the file system of `directory`; moved.
        directory: path of the installed bundle.
        archive: file on the same file system; moved.
        archive_path: path of the installed archive, in the parent of `directory`.

    Raises:
        OutputError: an existing file or directory cannot be replaced.
        ValueError: `archive_path` is in another directory.
    """
    if archive_path is not None and archive_path.parent != directory.parent:
        msg = f"{archive_path} must be in the same directory as {directory}"
        raise ValueError(msg)
    try:
        _set_modes(bundle)
        sync_files(bundle)
        if archive is not None:
            archive.chmod(0o644)
            sync_files(archive)
        with _install_lock(directory), _work_folder(directory) as work:
            _recover(directory)
            _transact(bundle, directory, work, archive, archive_path)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise OutputError(
            f"{error.filename2 or error.filename or directory} cannot be replaced: {error.strerror}",
            next_step="Move or remove it, or specify another directory with --output DIR.",
        ) from error


def complete_installation(directory: Path) -> None:
    """Complete an installation at `directory` whose process was killed between two renames; usually there is none.

    Raises:
        OutputError: it cannot be completed.
    """
    directory = directory.absolute()
    unfinished = next(_journals(directory), None) or _earlier_of_older_version(directory)
    if unfinished is None:
        return
    with _install_lock(directory):
        try:
            _recover(directory)
        except OSError as error:
            raise OutputError(
                f"the interrupted installation of {directory} cannot be completed: {error.strerror}",
                next_step="Make its parent directory writable, then run the same command again.",
            ) from error


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """A directory or lock that a killed command left; `pending` is the path at which a bundle in it is to be installed."""

    path: Path
    pending: Path | None


def complete_installations(folder: Path) -> None:
    """Complete every interrupted installation in `folder`.

    Raises:
        OutputError: the folder cannot be read, or an installation cannot be completed.
    """
    for leftover in find_leftovers(folder):
        if leftover.pending is not None:
            complete_installation(leftover.pending)


def find_leftovers(folder: Path) -> tuple[Leftover, ...]:
    """Return what killed commands left in `folder`, but nothing that a running process uses.

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
            f"{folder} cannot be read: {error.strerror}", next_step="Specify another directory with --output DIR."
        ) from error
    leftovers = []
    for entry in found:
        path = folder / entry.name
        if entry.is_dir(follow_symlinks=False):
            if _is_work_folder(path) and not is_held(path / LOCK):
                leftovers.append(Leftover(path=path, pending=_pending(path)))
        elif entry.name.endswith(_INSTALL_LOCK) and entry.is_file(follow_symlinks=False) and not is_held(path):
            leftovers.append(Leftover(path=path, pending=None))
    return tuple(leftovers)


def remove_leftover(leftover: Leftover) -> bool:
    """Install the bundle of a leftover, and remove its directory; return False if a process uses it meanwhile.

    Raises:
        OutputError: it cannot be installed or removed.
    """
    if leftover.pending is not None:
        complete_installation(leftover.pending)
    if not leftover.path.exists():
        return True
    is_lock = leftover.path.is_file()
    with try_lock(leftover.path if is_lock else leftover.path / LOCK) as held:
        if not held or is_lock:  # releasing a lock removes its file
            return held
        try:
            shutil.rmtree(leftover.path)
        except OSError as error:
            raise OutputError(
                f"{leftover.path} cannot be removed: {error.strerror}", next_step="Remove it manually."
            ) from error
    return True


@contextmanager
def _work_folder(directory: Path) -> Iterator[Path]:
    """Make a locked directory beside `directory`, and remove it with its contents at the end."""
    while True:
        folder = directory.with_name(f".{_short(directory.name)}-{secrets.token_hex(4)}.work")
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise _unwritable(directory.parent, error) from error
        try:
            with try_lock(folder / LOCK) as held:
                if held:  # otherwise `doctor --clean` has removed the directory
                    yield folder
                    return
        finally:
            with defer_signals():
                shutil.rmtree(folder, ignore_errors=True)


def _install_lock(directory: Path) -> AbstractContextManager[None]:
    """Hold the lock on installations at `directory`."""
    return lock(
        directory.with_name(f".{_short(directory.name)}{_INSTALL_LOCK}"),
        seconds=_WAIT_SECONDS,
        on_wait=lambda: console.step(f"Waiting for another process that is installing {directory}"),
    )


def _transact(bundle: Path, directory: Path, work: Path, archive: Path | None, archive_path: Path | None) -> None:
    """Make the renames; if one fails or is interrupted, revert them."""
    moves = [(bundle, work / _NEW)]
    if archive is not None and archive_path is not None:
        moves.append((archive, work / _NEW_ARCHIVE))
    try:
        for source, destination in moves:
            source.rename(destination)
        _write_journal(work, directory, archive_path if archive is not None else None)
        _finish(work, directory, archive_path)
    except BaseException:
        with defer_signals():
            _revert(work, directory)
            for source, destination in moves:
                if destination.exists():
                    destination.rename(source)
        raise


def _finish(work: Path, directory: Path, archive_path: Path | None) -> None:
    """Make the renames that were not made yet; each is atomic, and their order shows which were made before a kill."""
    new, new_archive, earlier = work / _NEW, work / _NEW_ARCHIVE, work / _EARLIER
    if new.exists():
        if os.path.lexists(directory):
            directory.rename(earlier)
        new.rename(directory)
    if new_archive.exists() and archive_path is not None:
        new_archive.replace(archive_path)
    sync_directory(directory.parent)
    (work / JOURNAL).unlink()


def _revert(work: Path, directory: Path) -> None:
    """Restore the earlier bundle, unless all renames were made."""
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
    """Complete the transactions of processes that were killed; the lock is held."""
    for work, journal in _journals(directory):
        archive_path = directory.with_name(journal.archive) if journal.archive else None
        if os.path.lexists(work / _NEW) and os.path.lexists(work / _EARLIER) and os.path.lexists(directory):
            # Another program has written a bundle there since.
            (work / JOURNAL).unlink()
        else:
            try:
                _finish(work, directory, archive_path)
            except OSError as error:
                if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                    raise
                _revert(work, directory)
                console.warn(f"{directory}: the interrupted installation cannot be completed and was reverted: {error}")
            else:
                console.step(f"Completed the interrupted installation of {directory}")
        shutil.rmtree(work, ignore_errors=True)
    earlier = _earlier_of_older_version(directory)
    if earlier is not None:
        earlier.rename(directory)
        console.step(f"Restored {directory}, whose replacement was interrupted")


@dataclass(frozen=True)
class _Journal:
    """The names of the bundle and its archive in the parent of the transaction's directory."""

    directory: str
    archive: str | None


def _write_journal(work: Path, directory: Path, archive_path: Path | None) -> None:
    names = {"schema": _SCHEMA, "directory": directory.name, "archive": archive_path.name if archive_path else None}
    with atomic_write(work / JOURNAL) as partial:
        partial.write_text(json.dumps(names), encoding="utf-8")
        sync_files(partial)
    sync_directory(work)


def _journals(directory: Path) -> Iterator[tuple[Path, _Journal]]:
    """Yield the directories and journals of the unfinished transactions at `directory`."""
    prefix = f".{_short(directory.name)}-"
    try:
        with os.scandir(directory.parent) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False)]
    except OSError:
        return  # whatever reads the directory next reports the error
    for name in sorted(names):
        work = directory.with_name(name)
        journal = _read_journal(work) if _WORK.fullmatch(name) else None
        if journal is not None and journal.directory == directory.name:
            yield work, journal


def _read_journal(work: Path) -> _Journal | None:
    """Return the journal in a directory; None if there is no valid one. It can name siblings of `work` only."""
    try:
        descriptor = os.open(work / JOURNAL, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with open(descriptor, "rb") as file:  # noqa: PTH123  a descriptor: no link or FIFO is opened
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


def _pending(work: Path) -> Path | None:
    journal = _read_journal(work) if _WORK.fullmatch(work.name) else None
    if journal is not None:
        return work.with_name(journal.directory)
    directory = work.with_name(_name_of(work))
    earlier = _earlier_of_older_version(directory)
    return directory if earlier is not None and earlier.parent == work else None


def _earlier_of_older_version(directory: Path) -> Path | None:
    """Return the bundle that an older version renamed before it was killed, if no other bundle is installed."""
    if os.path.lexists(directory):
        return None
    found = (path / directory.name for path in directory.parent.glob(f".{glob.escape(directory.name)}-old-????????"))
    return next((path for path in found if (path / "manifest.json").is_file()), None)


def _is_work_folder(path: Path) -> bool:
    """Return whether a directory was made by this module: by its name, and for names of older versions by its contents too."""
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
    """Shorten a long name, so that prefixes and suffixes fit into the 255 bytes that file systems allow."""
    encoded = os.fsencode(name)
    if len(encoded) <= _SHORT_BYTES:
        return name
    return f"{encoded[:_SHORT_BYTES].decode(errors='ignore')}-{oci_digest(encoded).removeprefix('sha256:')[:8]}"


def _set_modes(bundle: Path) -> None:
    """Set the modes that the files have in the archive, whatever the umask was."""
    bundle.chmod(0o755)
    for path in bundle.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _is_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < _FULL_BYTES


def _unwritable(folder: Path, error: OSError) -> OutputError:
    if error.errno in DISK_FULL:
        return OutOfSpaceError(str(folder))
    reason = f"{error.filename} is not a directory" if isinstance(error, FileExistsError) else error.strerror
    return OutputError(f"{folder} cannot be written to: {reason}", next_step="Specify another directory with --output DIR.")
