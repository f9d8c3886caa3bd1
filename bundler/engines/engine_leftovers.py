"""What killed commands left in the engine: containers and temporary images whose process has ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from docker.errors import NotFound

from bundler.engines.container_engine import Engine, call_engine, engine_errors
from bundler.engines.owner import LABEL, OWNER_LABEL, TEMPORARY, Owner

__all__ = ["EngineLeftover", "find_engine_leftovers", "remove_engine_leftover"]

_LIST_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class EngineLeftover:
    """A container or an image; `alive` is None if it is unknown whether its process still runs."""

    kind: Literal["container", "image"]
    name: str
    alive: Literal[False] | None


def find_engine_leftovers(engine: Engine) -> tuple[EngineLeftover, ...]:
    """Return the containers and temporary images of this program that no running process of this machine owns.

    Raises:
        EngineError: the engine failed.
    """
    api = engine.client.api
    with engine_errors("listing containers and images"):
        containers = call_engine(
            engine, lambda: api.containers(all=True, filters={"label": f"{LABEL}=run"}), seconds=_LIST_SECONDS
        )
        images = call_engine(engine, lambda: api.images(name=f"{TEMPORARY}/*"), seconds=_LIST_SECONDS)
    return tuple(_unowned([*_containers(containers), *_images(images)]))


def remove_engine_leftover(engine: Engine, leftover: EngineLeftover) -> None:
    """Remove one of them; it is no error if it was removed meanwhile.

    Raises:
        EngineError: the engine failed.
    """
    api = engine.client.api
    if leftover.kind == "container":
        remove = partial(api.remove_container, leftover.name, force=True, v=True)
    else:
        remove = partial(api.remove_image, leftover.name, force=True)
    with engine_errors(f"removing {leftover.name}"):
        try:
            call_engine(engine, remove)
        except NotFound:
            return


def _containers(found: list[dict[str, Any]]) -> Iterator[tuple[Literal["container", "image"], str, str]]:
    for container in found:
        yield "container", container["Names"][0].lstrip("/"), container["Labels"].get(OWNER_LABEL, "")


def _images(found: list[dict[str, Any]]) -> Iterator[tuple[Literal["container", "image"], str, str]]:
    for image in found:
        for reference in image["RepoTags"] or ():
            if reference.startswith(f"{TEMPORARY}/"):
                yield "image", reference, reference.rpartition(":")[2]


def _unowned(found: list[tuple[Literal["container", "image"], str, str]]) -> Iterator[EngineLeftover]:
    for kind, name, text in found:
        owner = Owner.parse(text)
        alive = owner.is_alive() if owner else None
        if alive is not True:
            yield EngineLeftover(kind=kind, name=name, alive=alive)
