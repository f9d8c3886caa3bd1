"""Calibration: run pictures through a prepared model, so that its observers record the ranges."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bundler.quantization.precision import double_precision

__all__ = ["calibrate"]


def calibrate(prepared: nn.Module, batches: Iterable[Tensor]) -> int:
    """Run every batch (float32 [N, 3, H, W], normalised) in float64 and return the number of pictures seen."""
    prepared.eval()
    seen = 0
    with double_precision(prepared), torch.inference_mode():
        for batch in batches:
            prepared(batch.double())
            seen += len(batch)
    return seen
