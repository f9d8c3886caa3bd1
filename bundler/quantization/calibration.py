"""Calibration: run pictures through a prepared model, so that its observers record the ranges."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantizeBase

from bundler.quantization.precision import double_precision

__all__ = ["calibrate"]


def calibrate(prepared: nn.Module, batches: Iterable[Tensor]) -> int:
    """Run every batch (float32 [N, 3, H, W], normalised) and return the number of pictures seen.

    The network computes in float64; one that was prepared for training in float32, as its fake quantization does.
    """
    prepared.eval()
    trained = any(isinstance(module, FakeQuantizeBase) for module in prepared.modules())
    seen = 0
    with nullcontext() if trained else double_precision(prepared), torch.inference_mode():
        for batch in batches:
            prepared(batch if trained else batch.double())
            seen += len(batch)
    return seen
