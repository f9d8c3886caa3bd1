"""The cache: directories named for the digest of what determines their content; checksums are verified on each use."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bundler import console
from bundler.errors import OutOfSpaceError, OutputError
from bundler.files.atomic_write import atomic_write
from bundler.files.sha256 import oci_digest, sha256_of
from bundler.images.layers import Layer
from bundler.interruption import defer_signals
from bundler.locking import is_held, lock, try_lock
from bundler.resources import cache_directory

__all__ = ["CachedFolder", "cached_folder", "find_partial_entries", "remove_partial_entry"]

CHECKSUMS = "checksums.json"
_SCHEMA = "edge-bundler/cache/1"
_MAKE_SECONDS = 7200.0  # to wait for another process that makes the same entry
_BUSY = ".making"  # suffix of an entry's lock; `.ENTRY.making-RANDOM` holds an entry that is being made or removed
_PARTIAL = re.compile(r"\.(?P<entry>.+)\.making(-.+)?|\.(?P<older>(base|runtime)-[0-9a-f]{16})\.[a-z0-9_]{8}")


@dataclass(frozen=True)
class CachedFolder:
    """An entry of the cache; `sha256` maps each file name to the digest computed on this use, in hexadecimal."""

    path: Path
    sha256: Mapping[str, str]

    def layer(self, name: str) -> Layer:
        """Return the layer in one of its files."""
        path = self.path / name
        return Layer(path=path, diff_id=f"sha256:{self.sha256[name]}", size_bytes=path.stat().st_size)


def cached_folder(name: str, facts: Mapping[str, object], make: Callable[[Path], None]) -> CachedFolder:
    """Return the entry `NAME-DIGEST` of the cache, where DIGEST is that of `facts`; `make` writes its files on the first use.

    The SHA-256 of every file is compared with the one recorded when the entry was made. A damaged entry is made again, with a
    warning. Of several processes that need the same entry, one makes it and the others wait.

    Args:
        name: of the kind of entry.
        facts: everything that determines the content, as values that JSON can represent.
        make: called with an empty directory.

    Raises:
        OutOfSpaceError: the disk is full.
        OutputError: the cache cannot be read or written.
    """
    digest = oci_digest(json.dumps(facts, sort_keys=True).encode()).removeprefix("sha256:")
    folder = cache_directory() / f"{name}-{digest[:16]}"
    checked = _checked(folder)
    if isinstance(checked, CachedFolder):
        return checked
    with _errors_of_the_cache(folder), _making(folder):
        checked = _checked(folder)  # another process may have made it meanwhile
        if isinstance(checked, CachedFolder):
            return checked
        if checked is not None:
            console.warn(f"{folder} is damaged ({checked}); making it again")
        with atomic_write(folder, prefix=f".{folder.name}{_BUSY}-") as partial:
            partial.mkdir()
            make(partial)
            sha256 = _write_checksums(partial)
            if checked is not None:
                _remove_damaged(folder)
    return CachedFolder(path=folder, sha256=sha256)


def find_partial_entries() -> tuple[Path, ...]:
    """Return the incomplete entries that killed processes left in the cache, but none that a running process is making."""
    folder = cache_directory()
    return tuple(path for path in sorted(folder.iterdir()) if (busy := _lock_of(path)) and not is_held(busy))


def remove_partial_entry(path: Path) -> bool:
    """Remove one of them; return False if a process has begun to make that entry meanwhile.

    Raises:
        OutputError: it cannot be removed.
    """
    busy = _lock_of(path)
    if busy is None:
        return False
    with try_lock(busy) as held:
        if held and path != busy:
            try:
                shutil.rmtree(path)
            except OSError as error:
                raise OutputError(f"{path} cannot be removed: {error.strerror}", next_step="Remove it manually.") from error
        return held


def _lock_of(path: Path) -> Path | None:
    found = _PARTIAL.fullmatch(path.name)
    return path.with_name(f".{found['entry'] or found['older']}{_BUSY}") if found else None


@contextmanager
def _making(folder: Path) -> Iterator[None]:
    with lock(
        folder.with_name(f".{folder.name}{_BUSY}"),
        seconds=_MAKE_SECONDS,
        on_wait=lambda: console.step(f"Waiting for another process that is making {folder}"),
    ):
        yield


def _checked(folder: Path) -> CachedFolder | str | None:
    """Return the entry if its files match their checksums, otherwise what is wrong with it; None if there is none."""
    try:
        stored = json.loads((folder / CHECKSUMS).read_bytes())
        if stored["schema"] != _SCHEMA:
            return "its checksums have another schema version"
        sha256 = {str(name): str(digest) for name, digest in stored["sha256"].items()}
        if sha256 != {name: sha256_of(folder / name) for name in _files(folder)}:
            return "its files do not match their checksums"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing" if folder.is_dir() else _in_the_way(folder)
    except NotADirectoryError:
        return "it is a file"
    except (ValueError, TypeError, KeyError, AttributeError):
        return "its checksums cannot be read"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return CachedFolder(path=folder, sha256=sha256)


def _in_the_way(folder: Path) -> str | None:
    return "it is not a directory" if folder.is_symlink() or folder.exists() else None


def _write_checksums(folder: Path) -> Mapping[str, str]:
    sha256 = {name: sha256_of(folder / name) for name in _files(folder)}
    (folder / CHECKSUMS).write_text(json.dumps({"schema": _SCHEMA, "sha256": sha256}, indent=2), encoding="utf-8")
    return sha256


def _files(folder: Path) -> list[str]:
    """Return the names of all files but the checksums. An entry has no subdirectories; one would fail to be read."""
    return sorted(path.name for path in folder.iterdir() if path.name != CHECKSUMS)


def _remove_damaged(folder: Path) -> None:
    """Remove a damaged entry; it is renamed first, so that the new one can take its name at once."""
    with defer_signals():
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}{_BUSY}-", dir=folder.parent))
        folder.rename(aside / folder.name)
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _errors_of_the_cache(folder: Path) -> Iterator[None]:
    """Raise errors of files in the cache as errors of the cache."""
    try:
        yield
    except OutOfSpaceError as error:
        if Path(error.path).is_relative_to(folder.parent):
            raise OutOfSpaceError(str(folder.parent)) from error
        raise  # it is about temporary files
    except OSError as error:
        raise OutputError(
            f"the cache {folder.parent} cannot be written to: {error.strerror}",
            next_step="Make it writable, or use another directory: XDG_CACHE_HOME=DIR.",
        ) from error
