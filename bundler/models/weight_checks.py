"""Refuse unusable weights: NaN or infinite values, overflow, negative variances, only zeros."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bundler.errors import CheckpointError
from bundler.quantization.key_matching import shown

__all__ = ["float_weights"]

LARGEST = 1e18  # the product of two such values is within the range of float32
SMALLEST = torch.finfo(torch.float32).tiny  # smaller (denormal) values may be flushed to zero

_DIVERGED = "Pass an earlier checkpoint: the training diverged, or the file is damaged."


def float_weights(
    tensors: Mapping[str, Tensor], kinds: Mapping[str, torch.dtype], *, source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights with the types of the network (float32, int64 for counters), and warnings.

    Args:
        tensors: by key.
        kinds: the type of each key in the network.
        source: the file's name in messages.

    Raises:
        CheckpointError: a tensor has integers, NaN, infinite, overflowing or negative variances, or the layers are zero.
    """
    converted: dict[str, Tensor] = {}
    for key, value in tensors.items():
        wanted = kinds.get(key)  # None for a tensor of another network, which is named when it is loaded
        if wanted is not None and wanted.is_floating_point and not value.is_floating_point():
            raise CheckpointError(
                f"the checkpoint {source} has integers in {key} ({str(value.dtype).removeprefix('torch.')}), but the network "
                "has floats there",
                next_step="Pass the checkpoint of the float model; bundler quantizes it.",
            )
        converted[key] = value.to(torch.float32) if value.is_floating_point() else value
        if value.is_floating_point():
            _refuse_bad(key, value, converted[key], source)
    return converted, _dead_layers(converted, source)


def _refuse_bad(key: str, value: Tensor, single: Tensor, source: str) -> None:
    if not torch.isfinite(single).all():
        if value.dtype == torch.float64 and torch.isfinite(value).all():
            raise CheckpointError(
                f"the checkpoint {source} contains values outside of float32's range, first in {key} (up to "
                f"{float(value.abs().max()):.3g})",
                next_step=_DIVERGED,
            )
        raise CheckpointError(f"the checkpoint {source} contains NaN or infinite values, first in {key}", next_step=_DIVERGED)
    if single.numel() and (most := float(single.abs().max())) > LARGEST:
        raise CheckpointError(
            f"the checkpoint {source} contains values up to {most:.3g} in {key}, with which float32 overflows",
            next_step=_DIVERGED,
        )
    if key.endswith("running_var") and (single < 0).any():
        raise CheckpointError(
            f"the checkpoint {source} has negative BatchNorm variances, first in {key} (down to {float(single.min()):.3g})",
            next_step=_DIVERGED,
        )


def _dead_layers(tensors: Mapping[str, Tensor], source: str) -> list[str]:
    """Return a warning for layers whose weights are all zero; CheckpointError if the outputs cannot depend on the image."""
    layers = [key for key, value in tensors.items() if value.ndim >= 2 and value.is_floating_point() and value.numel()]
    dead = [key for key in layers if float(tensors[key].abs().max()) < SMALLEST]
    if layers and (len(dead) == len(layers) or layers[0] in dead or layers[-1] in dead):
        what = "only zeros" if not any(tensors[key].any() for key in dead) else "only zeros and denormal numbers"
        raise CheckpointError(
            f"the checkpoint {source} contains {what} in {len(dead)} of {len(layers)} layers, first in {dead[0]}: the outputs "
            "would be the same for every image",
            next_step="Pass a checkpoint of the trained network.",
        )
    return [f"layers whose weights are all zero: {len(dead)} ({shown(dead)})"] if dead else []
