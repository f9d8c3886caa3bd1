"""Finds the keys of a network in a checkpoint, by names and shapes, with any prefix."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bundler.quantization.weight_names import Naming, Shapes, is_optional

__all__ = ["KeyMatch", "find_matches"]

_MAX_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class KeyMatch:
    """The keys of a network in a checkpoint.

    Args:
        naming: the naming that matched.
        keys: the checkpoint's key for each key of the naming.
        prefix: of most keys, with a trailing dot.
        parts: other prefixes, by child of the network.
        renamed: keys of the last layer, if it has another name in the checkpoint.
    """

    naming: Naming
    keys: Mapping[str, str]
    prefix: str
    parts: Mapping[str, str]
    renamed: Mapping[str, str]

    def others(self, given: Iterable[str]) -> list[str]:
        """Return the keys of the checkpoint that do not belong to the network."""
        used = set(self.keys.values())
        return [key for key in given if key not in used]


def find_matches(naming: Naming, given: Shapes) -> list[KeyMatch]:
    """Return a match for each prefix under which the checkpoint has all keys of the network; the shortest prefix first.

    Shapes are not compared. If no prefix has all keys, children of the network may have different prefixes (`backbone.` and
    `head.`), and the last linear layer another name; this gives one match at most.
    """
    hits = _hits(naming, given)
    required = [key for key in naming.shapes if not is_optional(key)]
    whole = [prefix for prefix, found in hits.items() if all(key in found for key in required)]
    if whole:
        return [
            KeyMatch(naming=naming, keys=hits[prefix], prefix=prefix, parts={}, renamed={})
            for prefix in sorted(whole, key=lambda prefix: (prefix.count("."), prefix))
        ]
    return _in_parts(naming, given, hits, required)


def _hits(naming: Naming, given: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return, for each prefix, the network's keys that the checkpoint has under it, with the checkpoint's keys."""
    known: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for key, names in naming.names.items():
        for rank, name in enumerate(names):
            known[name].append((key, rank))
    ranks: dict[tuple[str, str], int] = {}
    hits: dict[str, dict[str, str]] = defaultdict(dict)
    for full in given:
        start = 0
        while True:
            prefix, rest = full[:start], full[start:]
            for key, rank in known.get(rest, ()):
                if rank < ranks.get((prefix, key), len(naming.names[key])):
                    ranks[prefix, key] = rank
                    hits[prefix][key] = full
            following = full.find(".", start)
            if following < 0:
                break
            start = following + 1
    return hits


def _in_parts(naming: Naming, given: Shapes, hits: Mapping[str, Mapping[str, str]], required: list[str]) -> list[KeyMatch]:
    children: dict[str, list[str]] = defaultdict(list)
    for key in required:
        children[key.partition(".")[0]].append(key)
    covering = {
        child: [prefix for prefix, found in hits.items() if all(key in found for key in keys)]
        for child, keys in children.items()
    }
    weight = Counter[str]()
    for child, prefixes in covering.items():
        weight.update(dict.fromkeys(prefixes, len(children[child])))
    if not weight:
        return []
    most = max(weight.values())
    mains = [prefix for prefix, count in weight.items() if count == most]
    if 2 * most < len(required) or len(mains) > 1:
        return []
    (main,) = mains
    keys: dict[str, str] = {}
    parts: dict[str, str] = {}
    renamed: dict[str, str] = {}
    for child, prefixes in covering.items():
        own = [key for key in naming.shapes if key.partition(".")[0] == child]
        prefix = main if main in prefixes else prefixes[0] if len(prefixes) == 1 else None
        if prefix is not None:
            keys |= {key: hits[prefix][key] for key in own if key in hits[prefix]}
            if prefix != main:
                parts[child] = prefix
        elif not prefixes and child == required[-1].partition(".")[0]:
            found = _renamed_layer(naming, given, children[child], set(hits[main].values()))
            if found is None:
                return []
            renamed = found
            keys |= {key: hits[main][key] for key in own if key in hits[main]} | found
        else:
            return []
    return [KeyMatch(naming=naming, keys=keys, prefix=main, parts=parts, renamed=renamed)]


def _renamed_layer(naming: Naming, given: Shapes, keys: list[str], used: set[str]) -> dict[str, str] | None:
    """Return the keys of the only unused layer of the checkpoint that has the shape of the network's last linear layer."""
    last = keys[-1].rpartition(".")[0]
    weight, bias = f"{last}.weight", f"{last}.bias"
    others = [key for key in keys if key not in (weight, bias)]
    if set(keys) < {weight, bias} or any(len(naming.shapes.get(key, ())) != rank for key, rank in ((weight, 2), (bias, 1))):
        return None
    if others and not all(any(full.endswith(key) for full in used) for key in others):
        return None
    left = {key: shape for key, shape in given.items() if key not in used}
    layers = [key.removesuffix(".weight") for key, shape in left.items() if key.endswith(".weight") and len(shape) >= 2]
    if len(layers) != 1:
        return None
    (layer,) = layers
    shape = given[f"{layer}.weight"]
    if len(shape) != 2 or shape[1] != naming.shapes[weight][1] or given.get(f"{layer}.bias") != shape[:1]:
        return None
    return {weight: f"{layer}.weight", bias: f"{layer}.bias"}


def shown(keys: Iterable[str]) -> str:
    """Return the first three keys, followed by an ellipsis if there are more."""
    listed = list(keys)
    return ", ".join(listed[:_MAX_SHOWN]) + (", …" if len(listed) > _MAX_SHOWN else "")
