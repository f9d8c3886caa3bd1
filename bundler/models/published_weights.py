"""What a builder accepts as weights: torchvision's published ones, or a state dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor

from bundler.models import torchvision_operators  # noqa: F401  before torchvision

from torchvision.models import WeightsEnum

__all__ = ["Weights", "state_dict_of"]

Weights: TypeAlias = WeightsEnum | Mapping[str, Tensor] | None


def state_dict_of(weights: Weights, kwargs: dict[str, Any], *, progress: bool) -> Mapping[str, Tensor] | None:
    """Return the state dict, downloading and checking a published one; its number of classes goes into `kwargs`.

    Raises:
        ValueError: `num_classes` contradicts the published weights.
        OSError: the download failed (`urllib.error.URLError` is one).
        RuntimeError: what was downloaded does not have the published digest.
    """
    if weights is None or isinstance(weights, Mapping):
        return weights
    classes = len(weights.meta["categories"])
    if kwargs.setdefault("num_classes", classes) != classes:
        msg = f"{weights} has {classes} classes, not {kwargs['num_classes']}"
        raise ValueError(msg)
    state_dict: Mapping[str, Tensor] = weights.get_state_dict(progress=progress, check_hash=True, weights_only=True)
    return state_dict
