"""Weights whose products no processor cuts off.

Processors with AVX2 but without VNNI multiply uint8 by int8 and add two neighbouring products in 16 bits, with saturation
(`vpmaddubsw`). Torch's fbgemm avoids it by leaving a bit of every activation unused. Here activations keep their 8 bits, and
only those output channels in which two neighbouring weights add up to more than 128 give up range.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.ao.quantization import FakeQuantize
from torch.ao.quantization.observer import PerChannelMinMaxObserver

__all__ = ["LARGEST_SUM", "SaturationFreeFakeQuantize", "SaturationFreeObserver", "largest_pair_sums"]

LARGEST_SUM = 128  # times 255, the largest activation, is 32,640: within int16, on either side
_LARGEST_WEIGHT = 127
_HALF_RANGE = 127.5  # by which the base class divides a symmetric range


def largest_pair_sums(weight: Tensor) -> Tensor:
    """Return how far, in any output channel, two neighbouring weights add up, [O]; `weight` is [O, I] or [O, I, kH, kW].

    Neighbours are consecutive where the kernels multiply: input channels within a position of the kernel, then the next
    position (ONNX Runtime packs rows of im2col, and pairs an even one with the next; both parities are counted here).
    """
    rows = weight.permute(0, 2, 3, 1).flatten(1) if weight.ndim == 4 else weight
    if rows.shape[1] == 1:
        return rows[:, 0].abs()
    return (rows[:, :-1] + rows[:, 1:]).abs().amax(1)


class SaturationFreeObserver(PerChannelMinMaxObserver):
    """Gives each output channel of the weight it saw last a scale with which no pair of products saturates.

    With `whole=True` all channels share the largest of the scales, as qnnpack's default has it.
    """

    def __init__(self, *, whole: bool = False, **kwargs: Any) -> None:
        given = {"dtype": torch.qint8, "qscheme": torch.per_channel_symmetric, "ch_axis": 0, **kwargs}
        super().__init__(**given)
        self.whole = whole

    def forward(self, x_orig: Tensor) -> Tensor:
        weight = x_orig.detach()
        largest = weight.abs().amax(tuple(range(1, weight.ndim))) / _LARGEST_WEIGHT
        # Two weights are rounded by half a step each at most, so a step less in the scaled sum is enough.
        scale = torch.maximum(largest, largest_pair_sums(weight) / (LARGEST_SUM - 1))
        if self.whole:
            scale = scale.amax().expand_as(scale)
        self.max_val = scale * _HALF_RANGE
        self.min_val = -self.max_val
        return x_orig


class SaturationFreeFakeQuantize(FakeQuantize):
    """The same while training. Its scales follow the weights even where observers are frozen, so that no sum can grow past."""

    def __init__(self, **kwargs: Any) -> None:
        limits = {"quant_min": -128, "quant_max": 127, "dtype": torch.qint8}
        super().__init__(observer=SaturationFreeObserver, **limits, **kwargs)  # type: ignore[no-untyped-call]

    def enable_observer(self, enabled: bool = True) -> None:  # noqa: ARG002  torch freezes by it
        super().enable_observer(enabled=True)
