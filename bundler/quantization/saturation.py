"""Observers for weights whose products do not saturate int16 on any CPU.

CPUs with AVX2 but without VNNI multiply uint8 by int8 and add pairs of adjacent products in int16, with saturation
(`vpmaddubsw`). Torch's fbgemm avoids saturation with 7-bit activations (`reduce_range`). Here activations keep 8 bits, and the
scale is larger only for those output channels in which two adjacent weights would otherwise sum to more than 128.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.ao.quantization import FakeQuantize
from torch.ao.quantization.observer import PerChannelMinMaxObserver

__all__ = ["MAX_PAIR_SUM", "SaturationFreeFakeQuantize", "SaturationFreeObserver", "largest_pair_sums"]

MAX_PAIR_SUM = 128  # of two adjacent weights, absolute; times 255, the largest activation, it is 32,640 and fits int16
_MAX_WEIGHT = 127
_HALF_RANGE = 127.5  # divisor of PerChannelMinMaxObserver for a symmetric range


def largest_pair_sums(weight: Tensor) -> Tensor:
    """Return the largest absolute sum of two adjacent weights of each output channel, [O].

    Adjacent is meant in the order in which kernels multiply: input channels at one position of the kernel, then the next
    position. ONNX Runtime packs rows of im2col and pairs each even index with the next; here pairs that begin at an odd index
    are included.

    Args:
        weight: [O, I] or [O, I, kH, kW].
    """
    rows = weight.permute(0, 2, 3, 1).flatten(1) if weight.ndim == 4 else weight
    if rows.shape[1] == 1:
        return rows[:, 0].abs()
    return (rows[:, :-1] + rows[:, 1:]).abs().amax(1)


class SaturationFreeObserver(PerChannelMinMaxObserver):
    """Gives each output channel the smallest scale with which no pair of products saturates, from the weight seen last.

    Args:
        per_tensor: whether all channels share the largest of these scales, as in qnnpack's default qconfig.
        kwargs: of `PerChannelMinMaxObserver`.
    """

    def __init__(self, *, per_tensor: bool = False, **kwargs: Any) -> None:
        given = {"dtype": torch.qint8, "qscheme": torch.per_channel_symmetric, "ch_axis": 0, **kwargs}
        super().__init__(**given)
        self.per_tensor = per_tensor

    def forward(self, x_orig: Tensor) -> Tensor:
        weight = x_orig.detach()
        largest = weight.abs().amax(tuple(range(1, weight.ndim))) / _MAX_WEIGHT
        # Rounding adds half a step at most to each of two weights, so one step is subtracted from the largest sum.
        scale = torch.maximum(largest, largest_pair_sums(weight) / (MAX_PAIR_SUM - 1))
        if self.per_tensor:
            scale = scale.amax().expand_as(scale)
        self.max_val = scale * _HALF_RANGE
        self.min_val = -self.max_val
        return x_orig


class SaturationFreeFakeQuantize(FakeQuantize):
    """Fake quantization with a `SaturationFreeObserver` that stays enabled.

    Scales follow the weights even after observers are disabled, so that no sum can exceed the limit while training continues.
    """

    def __init__(self, **kwargs: Any) -> None:
        limits = {"quant_min": -128, "quant_max": 127, "dtype": torch.qint8}
        super().__init__(observer=SaturationFreeObserver, **limits, **kwargs)  # type: ignore[no-untyped-call]

    def enable_observer(self, enabled: bool = True) -> None:  # noqa: ARG002  called by torch's disable_observer
        super().enable_observer(enabled=True)
