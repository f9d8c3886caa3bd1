"""Accuracies that training scripts store in a checkpoint beside the weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from bundler.models.pickle_interpreter import Object
from bundler.models.pickled_modules import items_of

__all__ = ["claims_in", "mapping_of"]

# Names that training scripts use, without case and punctuation: best_acc1, val/accuracy, Top-1, metrics/mAP50-95(B).
_WHEN = r"(?:best|max|final|val|valid|validation|test|eval|metrics?)*"
_ACCURACY = re.compile(_WHEN + r"(?:acc(?:uracy)?1?|top1(?:acc(?:uracy)?)?|acc(?:uracy)?top1|prec1|multiclassaccuracy)")
_PRECISION = re.compile(_WHEN + r"(?:fitness|map|map5095|bboxmap)b?")
_PLAIN = re.compile(r"[A-Za-z0-9_@/.(): -]{1,80}")
DEPTH = 3  # levels of nested mappings that are searched
LARGEST = 200  # items of a mapping that is searched; larger ones are state dicts


def claims_in(checkpoint: object) -> dict[str, float]:
    """Return top-1 accuracies and mean average precisions that a checkpoint states, from 0 to 1, by their names in it.

    A value above 1 is taken as a percentage. Lightning's `best_model_score` counts if `monitor` has such a name.
    """
    return dict(_figures(checkpoint, DEPTH)) if isinstance(checkpoint, Mapping) else {}


def mapping_of(description: object) -> dict[str, object]:
    """Return strings, numbers and nested mappings of a pickled mapping by their keys; an empty dict for other records."""
    return _plain(description, DEPTH)


def _plain(value: object, depth: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, item in list(items_of(value).items())[: LARGEST + 1]:
        if isinstance(item, str | int | float):
            found[key] = item
        elif isinstance(item, Object) and depth > 1:
            found[key] = _plain(item, depth - 1)
        else:
            found[key] = None
    return found


def _figures(mapping: Mapping[object, object], depth: int) -> Iterator[tuple[str, float]]:
    if len(mapping) > LARGEST:
        return
    if "monitor" in mapping:
        mapping = {**mapping, str(mapping["monitor"]): mapping.get("best_model_score")}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and depth > 1:
            yield from _figures(value, depth - 1)
        elif isinstance(key, str) and _names_one(key) and (share := _share(value)) is not None:
            yield key, share


def _names_one(key: str) -> bool:
    if not _PLAIN.fullmatch(key):  # untrusted text that will be printed
        return False
    name = re.sub(r"[^a-z0-9]", "", key.lower())
    return bool(_ACCURACY.fullmatch(name) or _PRECISION.fullmatch(name))


def _share(value: object) -> float | None:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 < value <= 100:
        return None
    return value / 100 if value > 1 else float(value)
