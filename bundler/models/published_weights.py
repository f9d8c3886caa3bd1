"""The `weights` argument of a model parser: published torchvision weights, or a state dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor

from bundler.models import torchvision_operators  # noqa: F401  before torchvision

from torchvision.models import WeightsEnum

__all__ = ["Weights", "resolve_weights"]

Weights: TypeAlias = WeightsEnum | Mapping[str, Tensor] | None


def resolve_weights(
    weights: Weights, options: Mapping[str, Any], *, progress: bool
) -> tuple[Mapping[str, Tensor] | None, dict[str, Any]]:
    """Return the state dict, and the options with which the model that it fits is built.

    Args:
        weights: a state dict is returned as it is, published weights are downloaded and their SHA-256 prefix is checked.
        options: keyword arguments of the model's class. Published weights set `num_classes` if it is missing.
        progress: show the download's progress.

    Raises:
        ValueError: `num_classes` contradicts the published weights.
        OSError: the download failed (`urllib.error.URLError` is a subclass).
        RuntimeError: the downloaded file does not have the published digest.
    """
    if weights is None or isinstance(weights, Mapping):
        return weights, dict(options)
    classes = len(weights.meta["categories"])
    if (wanted := options.get("num_classes", classes)) != classes:
        msg = f"{weights} has {classes} classes, not {wanted}"
        raise ValueError(msg)
    state_dict: Mapping[str, Tensor] = weights.get_state_dict(progress=progress, check_hash=True, weights_only=True)
    return state_dict, {**options, "num_classes": classes}
