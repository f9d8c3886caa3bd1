"""Modules of a pickled network with their classes and attributes, and how they differ from a network that is built here."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from bundler.models.pickle_interpreter import MOST_STEPS, Global, Object, UnreadableError
from bundler.visible import visible

__all__ = ["Payload", "PickledModule", "differences", "is_module", "items_of", "pickled_modules", "text_of"]

_NUMBERS = ("stride", "padding", "dilation", "groups", "eps", "kernel_size", "negative_slope", "ceil_mode", "padding_mode")
_ACTIVATIONS = "torch.nn.modules.activation"
_LONGEST_PATH = 500  # characters; this limits the nesting as well


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
    """The records of a checkpoint's pickle, and a function that reads a tensor of it and names it in errors."""

    description: object
    tensor: Callable[[object, str], Tensor]


def is_module(value: object) -> bool:
    """Return whether unpickling would make a torch.nn.Module of a record."""
    return isinstance(value, Object) and isinstance(value.maker, Global) and "_modules" in _attributes(value)


def pickled_modules(root: object) -> dict[str, PickledModule]:
    """Return the module `root` (path "") and all its descendants by path, in the order of torch's named_modules.

    Raises:
        UnreadableError: a child is not a module, or the modules refer to each other too often or are nested too deeply.
    """
    found: dict[str, PickledModule] = {}
    waiting = [("", root)]
    while waiting:
        path, value = waiting.pop()
        if not (isinstance(value, Object) and isinstance(value.maker, Global) and is_module(value)):
            raise UnreadableError(f"{text_of(path)} is not a module")
        attributes = _attributes(value)
        children = {name: child for name, child in items_of(attributes["_modules"]).items() if child is not None}
        found[path] = PickledModule(kind=value.maker, attributes=attributes, children=tuple(children))
        if len(found) > MOST_STEPS // 100 or len(path) > _LONGEST_PATH:
            raise UnreadableError("its modules refer to each other too often")
        waiting.extend((f"{path}.{name}" if path else name, child) for name, child in reversed(children.items()))
    return found


def items_of(value: object) -> dict[str, object]:
    """Return the items with string keys of a dict; an empty dict for other values."""
    items = value.items if isinstance(value, Object) else []
    return {key: item for key, item in items if isinstance(key, str)}


def text_of(value: object) -> str:
    """Return a name or value of the file on one line of about 100 characters, however deeply it is nested."""
    return visible(value if isinstance(value, str) else reprlib.repr(value), 100)


def _attributes(value: Object) -> dict[str, object]:
    state = value.state
    return items_of(state[0] if isinstance(state, tuple) and state else state)  # a tuple if the class has __slots__


def differences(root: object, prefix: str, model: nn.Module) -> list[str]:
    """Return how a pickled network differs from `model` although keys and shapes are equal: strides, eps, activations.

    Args:
        root: the pickled module.
        prefix: of the network in it, with a trailing dot.
        model: the network that is built.

    Raises:
        UnreadableError: the pickled modules refer to each other too often.
    """
    pickled = pickled_modules(root)
    found: list[str] = []
    for name, own in model.named_modules():
        other = pickled.get((prefix + name).removesuffix("."))
        if other is None:
            continue
        found += _other_numbers(name, own, other)
        activations = set(_activations(pickled, (prefix + name).removesuffix("."), other.children))
        built = {_name(child) for child in own.children() if _is_activation(child)}
        if more := activations - built:
            expected = " and ".join(sorted(built)) or "none"
            found.append(f"{name or 'the network'} has the activation {' and '.join(sorted(more))}, not {expected}")
    return found


def _other_numbers(name: str, own: nn.Module, other: PickledModule) -> Iterable[str]:
    if next(own.children(), None) is not None:
        return
    for key in _NUMBERS:
        given = other.attributes.get(key)
        expected = getattr(own, key, None)
        if (
            isinstance(given, int | float | str | tuple)
            and isinstance(expected, int | float | str | tuple)
            and given != expected
        ):
            yield f"{name} has {key} {given}, not {expected}"


def _activations(pickled: Mapping[str, PickledModule], path: str, children: Iterable[str]) -> Iterable[str]:
    for child in children:
        module = pickled.get(f"{path}.{child}" if path else child)
        if module is not None and module.kind.module == _ACTIVATIONS:
            yield module.kind.name


def _is_activation(module: nn.Module) -> bool:
    quantizable = type(module).__name__.startswith("Quantizable") and hasattr(nn, _name(module))
    return type(module).__module__ == _ACTIVATIONS or quantizable


def _name(module: nn.Module) -> str:
    return type(module).__name__.removeprefix("Quantizable")
