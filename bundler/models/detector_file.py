"""DetectorFile: a detector's state dict with the options that its parser needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bundler.errors import CheckpointError
from bundler.models.detector import BOX

__all__ = ["MOST_ANCHORS", "MOST_CLASSES", "DetectorFile", "agreed_classes"]

# Limits, because a few bytes of a file could request any number.
MOST_ANCHORS = 16  # per cell; published networks have 3
MOST_CLASSES = 10_000


@dataclass(frozen=True, kw_only=True)
class DetectorFile:
    """A state dict, and the options with which the parser builds its network.

    Args:
        state_dict: with the keys of the model.
        num_classes: of its heads.
        options: keyword arguments of the parser.
        class_names: one for each class; None if the file has none.
        network: one sentence: the file's activations and anchors, or the assumed ones.
    """

    state_dict: Mapping[str, Tensor]
    num_classes: int
    options: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    network: str | None = None


def agreed_classes(found: int, asked: int | None, *, anchors: int, source: str) -> int:
    """Return `found`, the number of classes of a file.

    Raises:
        CheckpointError: it is not the requested number `asked`, or above `MOST_CLASSES`.
    """
    if found > MOST_CLASSES:
        raise CheckpointError(
            f"the checkpoint {source} has heads for {found:,} classes; at most {MOST_CLASSES:,} are supported",
            next_step="Pass the checkpoint of a detector; this one is damaged, or of another network.",
        )
    if asked is not None and asked != found:
        raise CheckpointError(
            f"the checkpoint {source} has {found} classes, but --num-classes is {asked}: each of its detection "
            f"convolutions has {anchors * (BOX + found)} channels, {anchors} anchors x ({BOX} + {found})",
            next_step=f"Pass --num-classes {found}, or omit the option: the number is read from the checkpoint.",
        )
    return found
