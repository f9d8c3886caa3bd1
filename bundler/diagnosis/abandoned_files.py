"""Files, containers and images that killed commands left behind: found by name, removed if no running process uses them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bundler.engines.container_engine import Engine
from bundler.engines.engine_availability import NoEngine
from bundler.engines.engine_leftovers import EngineLeftover, find_engine_leftovers, remove_engine_leftover
from bundler.errors import BundlerError
from bundler.images.cache import find_partial_entries, remove_partial_entry
from bundler.packaging.installation import Leftover as InstallationLeftover
from bundler.packaging.installation import find_leftovers as find_installation_leftovers
from bundler.packaging.installation import remove_leftover as remove_installation_leftover

__all__ = ["Leftover", "clean", "find_leftovers"]


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """A leftover; `detail` is its kind, and `remove` removes it and returns whether it did.

    `remove` is None if it cannot be determined whether a running process uses the leftover.
    """

    name: str
    detail: str
    remove: Callable[[], bool] | None


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """The result of removing a leftover: `problem` is empty if it was removed."""

    leftover: Leftover
    problem: str


def find_leftovers(engine: Engine | NoEngine, output: Path) -> tuple[Leftover, ...]:
    """Return what was left in `output` and its folders, in the cache, and in the engine if there is one.

    Raises:
        OutputError: a folder cannot be read.
        EngineError: the engine failed.
    """
    return (*_on_disk(output), *(_in_engine(engine) if isinstance(engine, Engine) else ()))


def clean(leftovers: tuple[Leftover, ...]) -> tuple[Cleaned, ...]:
    """Remove each, and continue with the others if one cannot be removed."""
    return tuple(Cleaned(leftover=leftover, problem=_problem(leftover)) for leftover in leftovers)


def _problem(leftover: Leftover) -> str:
    if leftover.remove is None:
        return "its process may be alive"
    try:
        return "" if leftover.remove() else "another command uses it now"
    except BundlerError as error:
        return error.message


def _on_disk(output: Path) -> Iterator[Leftover]:
    for folder in (output, *_folders(output)):
        for found in find_installation_leftovers(folder):
            yield Leftover(name=str(found.path), detail=_what(found), remove=partial(remove_installation_leftover, found))
    for path in find_partial_entries():
        yield Leftover(name=str(path), detail="an incomplete entry of the cache", remove=partial(remove_partial_entry, path))


def _folders(output: Path) -> list[Path]:
    return sorted(path for path in output.iterdir() if path.is_dir() and not path.is_symlink()) if output.is_dir() else []


def _what(leftover: InstallationLeftover) -> str:
    if leftover.pending is not None:
        return f"a bundle whose installation at {leftover.pending} was interrupted, and will be completed"
    return "a lock" if leftover.path.is_file() else "the staging directory of a command that was killed"


def _in_engine(engine: Engine) -> Iterator[Leftover]:
    for found in find_engine_leftovers(engine):
        remove = partial(_remove_from_engine, engine, found) if found.alive is False else None
        owner = "a process that is gone" if found.alive is False else "an unknown process"
        yield Leftover(name=found.name, detail=f"{found.kind} of {owner}", remove=remove)


def _remove_from_engine(engine: Engine, leftover: EngineLeftover) -> bool:
    remove_engine_leftover(engine, leftover)
    return True
