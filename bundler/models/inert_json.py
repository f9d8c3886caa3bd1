"""What a pickle describes, as JSON: how one process hands it to another without pickling anything.

Compound values are numbered; `[7]` refers to number 7, and everything else stands for itself.
"""

from __future__ import annotations

from typing import Any

from bundler.models.inert_pickle import Global, Object, Persistent, UnreadableError

__all__ = ["from_json", "to_json"]

Json = list[Any]

_LARGEST = 2**63  # whole numbers beyond are no sizes, and json refuses very long ones


def to_json(root: object) -> Json:  # noqa: C901  one case for each kind of value
    """Return lists, strings and numbers from which `from_json` makes an equal description.

    Bytes become None: no tensor is made of them. Nesting may be of any depth, and cyclic.
    """
    numbers: dict[int, int] = {}
    nodes: list[object] = []
    waiting: list[tuple[object, bool]] = [(root, False)]
    while waiting:
        value, left = waiting.pop()
        if id(value) in numbers or not _is_compound(value):
            continue
        mutable = isinstance(value, list | Object)
        if mutable or left:  # what cannot be changed later is numbered after its parts
            numbers[id(value)] = len(nodes)
            nodes.append(value)
        if not left:
            waiting.append((value, True))
            waiting.extend((part, False) for part in _parts(value))

    def reference(value: object) -> object:
        if _is_compound(value):
            return [numbers[id(value)]]
        if isinstance(value, bytes | bytearray) or (type(value) is int and abs(value) >= _LARGEST):
            return None
        return value

    encoded: Json = [reference(root)]
    for node in nodes:
        match node:
            case Global(module=module, name=name):
                encoded.append(["g", module, name])
            case Persistent(identifier=identifier):
                encoded.append(["p", reference(identifier)])
            case Object(maker=maker, arguments=arguments, state=state, items=items):
                flat = [reference(part) for item in items for part in item]
                encoded.append(["o", reference(maker), reference(arguments), reference(state), *flat])
            case list() | tuple():
                encoded.append(["l" if isinstance(node, list) else "t", *map(reference, node)])
    return encoded


def _is_compound(value: object) -> bool:
    return isinstance(value, list | tuple | Object | Global | Persistent)


def _parts(value: object) -> list[object]:
    match value:
        case Persistent(identifier=identifier):
            return [identifier]
        case Object(maker=maker, arguments=arguments, state=state, items=items):
            return [maker, arguments, state, *(part for item in items for part in item)]
        case list() | tuple():
            return list(value)
    return []


def from_json(encoded: Json) -> object:
    """Return the description that `to_json` encoded.

    Raises:
        UnreadableError: it is no such encoding.
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
