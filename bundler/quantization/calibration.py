"""Calibration: run pictures through a prepared model, so that its observers record the ranges."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["calibrate"]


def calibrate(prepared: nn.Module, batches: Iterable[Tensor]) -> int:
    """Run every batch (float32 [N, 3, H, W], normalised) and return the number of pictures seen."""
    prepared.eval()
    seen = 0
    with torch.inference_mode():
        for batch in batches:
            prepared(batch)
            seen += len(batch)
    return seen
