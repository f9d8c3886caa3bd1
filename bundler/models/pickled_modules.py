"""Modules of a pickled network by their path, each with its class and its attributes; nothing is imported or called."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from bundler.models.inert_pickle import MOST_STEPS, Global, Object, UnreadableError

__all__ = ["Payload", "PickledModule", "is_module", "items_of", "pickled_modules", "text_of"]

_LONGEST_PATH = 500  # characters; it bounds the nesting as well


@dataclass(frozen=True, kw_only=True)
class PickledModule:
    """A module: its class, its attributes, and the names of its children."""

    kind: Global
    attributes: Mapping[str, object]
    children: tuple[str, ...] = ()

    def __str__(self) -> str:
        return text_of(self.kind.name)


@dataclass(frozen=True, kw_only=True)
class Payload:
    """What a checkpoint's pickle describes, and what reads a tensor in it by its name in messages (CheckpointError)."""

    description: object
    tensor: Callable[[object, str], Tensor]


def is_module(value: object) -> bool:
    """Say whether unpickling would make a torch.nn.Module of a value."""
    return isinstance(value, Object) and isinstance(value.maker, Global) and "_modules" in _attributes(value)


def pickled_modules(root: object) -> dict[str, PickledModule]:
    """Return the module `root`, by the empty path, and all below it, in torch's order.

    Raises:
        UnreadableError: a child is no module, or the modules hold each other too often or too deeply.
    """
    found: dict[str, PickledModule] = {}
    waiting = [("", root)]
    while waiting:
        path, value = waiting.pop()
        if not (isinstance(value, Object) and isinstance(value.maker, Global) and is_module(value)):
            raise UnreadableError(f"{text_of(path)} is no module")
        attributes = _attributes(value)
        children = {name: child for name, child in items_of(attributes["_modules"]).items() if child is not None}
        found[path] = PickledModule(kind=value.maker, attributes=attributes, children=tuple(children))
        if len(found) > MOST_STEPS // 100 or len(path) > _LONGEST_PATH:
            raise UnreadableError("its modules hold each other too often")
        waiting.extend((f"{path}.{name}" if path else name, child) for name, child in reversed(children.items()))
    return found


def items_of(value: object) -> dict[str, object]:
    """Return the items of a dict whose keys are strings; none of anything else."""
    items = value.items if isinstance(value, Object) else []
    return {key: item for key, item in items if isinstance(key, str)}


def text_of(value: object) -> str:
    """Return a name or value of the file's in one short printable line, however deep it is nested."""
    text = value if isinstance(value, str) else reprlib.repr(value)
    return "".join(character if character.isprintable() else "?" for character in text[:100])


def _attributes(value: Object) -> dict[str, object]:
    state = value.state
    return items_of(state[0] if isinstance(state, tuple) and state else state)  # a tuple if the class has __slots__
