"""DetectorFile: what a checkpoint of a detector gives beside its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bundler.errors import CheckpointError
from bundler.models.detector import BOX

__all__ = ["MOST_ANCHORS", "MOST_CLASSES", "DetectorFile", "agreed_classes"]

# What a file may ask for; a few bytes could ask for any number.
MOST_ANCHORS = 16  # of a cell; published networks have 3
MOST_CLASSES = 10_000


@dataclass(frozen=True, kw_only=True)
class DetectorFile:
    """A state dict, and what the parser needs to build its network.

    Args:
        state_dict: with the keys of the model.
        num_classes: of its heads.
        options: keyword arguments of the parser.
        class_names: one for each class; None where the file has none.
        network: one sentence: what the file says of activations and anchors, or what is assumed.
    """

    state_dict: Mapping[str, Tensor]
    num_classes: int
    options: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    network: str | None = None


def agreed_classes(found: int, asked: int | None, *, anchors: int, source: str) -> int:
    """Return the number of classes of a file.

    Raises:
        CheckpointError: another one was asked for, or there are more than `MOST_CLASSES`.
    """
    if found > MOST_CLASSES:
        raise CheckpointError(
            f"the checkpoint {source} has heads for {found:,} classes; up to {MOST_CLASSES:,} are built",
            next_step="Give the checkpoint of a detector; this one is damaged, or of another network.",
        )
    if asked is not None and asked != found:
        raise CheckpointError(
            f"the checkpoint {source} has {found} classes, and {asked} were asked for: each of its detection convolutions has "
            f"{anchors * (BOX + found)} channels, {anchors} anchors x ({BOX} + {found})",
            next_step=f"Give --num-classes {found}, or leave the option out: the number is read from the checkpoint.",
        )
    return found
