"""The records of the pickle interpreter as JSON, with which the child process passes them to its parent.

Compound values are numbered: `[7]` refers to number 7. All other values are written as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

from bundler.models.pickle_interpreter import Global, Object, Persistent, UnreadableError

__all__ = ["from_json", "to_json"]

Json = list[Any]

_MOST_NODES = 200_000  # compound values; a yolov5x with its EMA and its optimizer has 60,000
_LARGEST = 2**63  # larger integers are no sizes, and json rejects very long ones


def to_json(root: object) -> Json:
    """Return lists, strings and numbers from which `from_json` makes equal records.

    Bytes become None: no tensor is read from them. Values may be nested to any depth, and cyclic.

    Raises:
        UnreadableError: there are too many compound values.
    """
    numbers: dict[int, int] = {}
    nodes: list[object] = []
    waiting: list[tuple[object, bool]] = [(root, False)]
    while waiting:
        value, left = waiting.pop()
        kind = type(value)
        if kind not in _PARTS or id(value) in numbers:
            continue
        if left or kind in _MUTABLE:  # immutable values are numbered after their parts
            numbers[id(value)] = len(nodes)
            nodes.append(value)
            if len(nodes) > _MOST_NODES:
                raise UnreadableError(f"its pickle describes more than {_MOST_NODES:,} objects")
        if len(waiting) > 2 * _MOST_NODES:  # deep nesting numbers no value before its end
            raise UnreadableError(f"its pickle describes more than {_MOST_NODES:,} objects")
        if not left:
            waiting.append((value, True))
            waiting.extend((part, False) for part in _PARTS[kind](value) if type(part) in _PARTS)

    def reference(value: object) -> object:
        kind = type(value)
        if kind in _PARTS:
            return [numbers[id(value)]]
        if kind in _BYTES or (kind is int and abs(value) >= _LARGEST):  # type: ignore[arg-type]
            return None
        return value

    names = (
        [node.module, node.name] if isinstance(node, Global) else map(reference, _PARTS[type(node)](node)) for node in nodes
    )
    return [reference(root), *([_TAGS[type(node)], *parts] for node, parts in zip(nodes, names, strict=True))]


_PARTS: dict[type, Callable[[Any], Iterable[object]]] = {
    list: lambda value: value,
    tuple: lambda value: value,
    Global: lambda _: (),
    Persistent: lambda value: (value.identifier,),
    Object: lambda value: chain((value.maker, value.arguments, value.state), chain.from_iterable(value.items)),
}
_TAGS = {list: "l", tuple: "t", Global: "g", Persistent: "p", Object: "o"}
_MUTABLE = (list, Object)
_BYTES = (bytes, bytearray)


def from_json(encoded: Json) -> object:
    """Return the records that `to_json` encoded.

    Raises:
        UnreadableError: `encoded` is not such an encoding.
    """
    try:
        return _decoded(encoded)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise UnreadableError("its description is damaged") from error


def _decoded(encoded: Json) -> object:  # noqa: C901  one case for each kind of value
    root, *nodes = encoded
    made: dict[int, Any] = {}
    for number, (kind, *_) in enumerate(nodes):
        if kind == "l":
            made[number] = []
        elif kind == "o":
            made[number] = Object(None, None)

    def value(reference: Any) -> Any:
        return made[reference[0]] if isinstance(reference, list) else reference

    for number, (kind, *parts) in enumerate(nodes):
        if kind == "t":
            made[number] = tuple(map(value, parts))
        elif kind == "g":
            made[number] = Global(*parts)
        elif kind == "p":
            made[number] = Persistent(value(parts[0]))
    for number, (kind, *parts) in enumerate(nodes):
        if kind == "l":
            made[number].extend(map(value, parts))
        elif kind == "o":
            target = made[number]
            target.maker, target.arguments, target.state, *flat = map(value, parts)
            target.items = list(zip(flat[::2], flat[1::2], strict=True))
    return value(root)
