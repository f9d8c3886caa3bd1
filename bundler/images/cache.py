"""Folders that are made once and kept between builds, named for everything that determines them, and checked when used."""

from __future__ import annotations

import hashlib
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
from bundler.images.layers import Layer, writing
from bundler.interruption import shielded
from bundler.locking import is_held, lock, try_lock
from bundler.resources import cache_directory

__all__ = ["CachedFolder", "cached_folder", "find_partial_entries", "remove_partial_entry"]

CHECKSUMS = "checksums.json"
_SCHEMA = "edge-bundler/cache/1"
_MAKE_SECONDS = 7200.0  # that another process is waited for which makes the same entry
_BUSY = ".making"  # an entry's lock is `.ENTRY.making`; what is being made or thrown away is in `.ENTRY.making-RANDOM`
_PARTIAL = re.compile(r"\.(?P<entry>.+)\.making(-.+)?|\.(?P<older>(base|runtime)-[0-9a-f]{16})\.[a-z0-9_]{8}")


@dataclass(frozen=True)
class CachedFolder:
    """A folder of the cache; `sha256` has every file of it with the digest that it was just found to have, in hexadecimal."""

    path: Path
    sha256: Mapping[str, str]

    def layer(self, name: str) -> Layer:
        """Return one of its files as the layer that it is."""
        path = self.path / name
        return Layer(path=path, diff_id=f"sha256:{self.sha256[name]}", size_bytes=path.stat().st_size)


def cached_folder(name: str, facts: Mapping[str, object], make: Callable[[Path], None]) -> CachedFolder:
    """Return the folder `name-<digest of facts>` of the cache; `make` fills it the first time.

    Every file is compared with the digest that it had when it was made. A folder that is damaged is made again, with a warning.
    Of several processes that want the same folder, one makes it and the others wait.

    Raises:
        OutOfSpaceError: the disk is full.
        OutputError: the cache cannot be read, or has to be written to and cannot be.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    folder = cache_directory() / f"{name}-{digest[:16]}"
    checked = _checked(folder)
    if isinstance(checked, CachedFolder):
        return checked
    with _errors_of_the_cache(folder), _making(folder):
        checked = _checked(folder)  # another process may have made it meanwhile
        if isinstance(checked, CachedFolder):
            return checked
        if checked is not None:
            console.warn(f"{folder} is damaged ({checked}) and is made again")
        with writing(folder, prefix=f".{folder.name}{_BUSY}-") as partial:
            partial.mkdir()
            make(partial)
            sha256 = _write_checksums(partial)
            if checked is not None:
                _throw_away(folder)
    return CachedFolder(path=folder, sha256=sha256)


def find_partial_entries() -> tuple[Path, ...]:
    """Return what killed processes left in the cache half-made; what a living one is making is not among it."""
    folder = cache_directory()
    return tuple(path for path in sorted(folder.iterdir()) if (busy := _lock_of(path)) and not is_held(busy))


def remove_partial_entry(path: Path) -> bool:
    """Remove one of them; False where a process has begun to make that entry meanwhile.

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
                raise OutputError(f"{path} cannot be removed: {error.strerror}", next_step="Remove it by hand.") from error
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
    """Return a folder of the cache whose files are as they were made; otherwise what is wrong; None where there is none."""
    try:
        stored = json.loads((folder / CHECKSUMS).read_bytes())
        if stored["schema"] != _SCHEMA:
            return "its checksums are of another version"
        sha256 = {str(name): str(digest) for name, digest in stored["sha256"].items()}
        if sha256 != {name: _sha256(folder / name) for name in _files(folder)}:
            return "its files are not those that were made"
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
    return "it is no folder" if folder.is_symlink() or folder.exists() else None


def _write_checksums(folder: Path) -> Mapping[str, str]:
    sha256 = {name: _sha256(folder / name) for name in _files(folder)}
    (folder / CHECKSUMS).write_text(json.dumps({"schema": _SCHEMA, "sha256": sha256}, indent=2), encoding="utf-8")
    return sha256


def _files(folder: Path) -> list[str]:
    """Return everything in a folder but its checksums; a folder or a link in it is none of ours, and fails to be read."""
    return sorted(path.name for path in folder.iterdir() if path.name != CHECKSUMS)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _throw_away(folder: Path) -> None:
    """Move a damaged entry aside, where the new one is about to come, and remove it."""
    with shielded():
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}{_BUSY}-", dir=folder.parent))
        folder.rename(aside / folder.name)
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _errors_of_the_cache(folder: Path) -> Iterator[None]:
    """Say of the cache what the system says of a file in it."""
    try:
        yield
    except OutOfSpaceError as error:
        if Path(error.path).is_relative_to(folder.parent):
            raise OutOfSpaceError(str(folder.parent)) from error
        raise  # of temporary files
    except OSError as error:
        raise OutputError(
            f"the cache {folder.parent} cannot be written to: {error.strerror}",
            next_step="Make it writable, or move it: XDG_CACHE_HOME=DIR.",
        ) from error
