"""Ways to choose the range of an activation: torch's, which looks for the smallest squared error, and others (issue 4).

Each reads the histogram of 2048 bins that torch's observer keeps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.ao.quantization.observer import HistogramObserver

from bundler.quantization.precision import double_precision
from bundler.targets import Ranges

__all__ = ["RANGE_OBSERVERS", "EntropyObserver", "MinMaxRangeObserver", "PercentileObserver", "SquaredErrorObserver"]

CUT = 1e-4  # share of the values that a percentile leaves out, half of them at each end
CANDIDATES = 96  # ranges that are tried for the smallest divergence, from all of the histogram down to an eighth of it
NARROWEST = 1 / 8
FLOOR = 1e-4  # share of the values that stands for "almost none": the divergence from none at all is infinite

Range = tuple[Tensor, Tensor]


class MinMaxRangeObserver(HistogramObserver):
    """Everything that was seen."""

    def _non_linear_param_search(self) -> Range:
        return self.min_val, self.max_val


class SquaredErrorObserver(HistogramObserver):
    """Torch's own search, with its sums in float64: in float32 they depend on the CPU, and with them where the search ends."""

    def _non_linear_param_search(self) -> Range:
        counts = self.histogram
        self.histogram = counts.double()
        try:
            with double_precision():
                low, high = super()._non_linear_param_search()
        finally:
            self.histogram = counts
        return low.to(self.min_val.dtype), high.to(self.min_val.dtype)


class PercentileObserver(HistogramObserver):
    """All but the rarest values (Wu et al. 2020, arXiv:2004.09602, section 3.1)."""

    def _non_linear_param_search(self) -> Range:
        share = self.histogram.double().cumsum(0) / self.histogram.double().sum()
        edges = torch.linspace(float(self.min_val), float(self.max_val), self.bins + 1)
        low = int(torch.searchsorted(share, CUT / 2))
        high = int(torch.searchsorted(share, 1 - CUT / 2))
        return edges[min(low, self.bins - 1)], edges[min(high, self.bins - 1) + 1]


class EntropyObserver(HistogramObserver):
    """The range with which the quantized values tell most of the float ones: the smallest Kullback-Leibler divergence.

    Migacz 2017, "8-bit Inference with TensorRT"; both ends are drawn in by the same share, so that zero stays inside.
    """

    def _non_linear_param_search(self) -> Range:
        histogram = self.histogram.double()
        zero = float(-self.min_val / (self.max_val - self.min_val)) * self.bins  # as a place in the histogram
        zero = min(max(zero, 0.0), float(self.bins))
        best, ends = torch.inf, (0, self.bins)
        for share in torch.linspace(1, NARROWEST, CANDIDATES).tolist():
            low, high = round(zero - zero * share), round(zero + (self.bins - zero) * share)
            divergence = _divergence(histogram, low, high, self.dst_nbins)
            if divergence < best:
                best, ends = divergence, (low, high)
        width = (self.max_val - self.min_val) / self.bins
        return self.min_val + width * ends[0], self.min_val + width * ends[1]


def _divergence(histogram: Tensor, low: int, high: int, levels: int) -> float:
    """Return how much is lost when the bins from `low` to `high` share `levels` values and what is outside goes to the ends."""
    inside = histogram[low:high]
    if inside.sum() == 0:
        return torch.inf
    clipped = inside.clone()
    clipped[0] += histogram[:low].sum()
    clipped[-1] += histogram[high:].sum()
    level = torch.arange(len(inside)) * levels // len(inside)
    filled = (inside > 0).double()
    mass = torch.zeros(levels, dtype=torch.double).index_add_(0, level, inside)
    count = torch.zeros(levels, dtype=torch.double).index_add_(0, level, filled)
    spread = filled * (mass / count.clamp(min=1))[level]  # each value spread evenly over the bins that had something
    p, q = clipped / clipped.sum(), spread / spread.sum()
    there = p > 0
    return float((p[there] * (p[there] / q[there].clamp(min=FLOOR / len(q))).log()).sum())


RANGE_OBSERVERS: dict[Ranges, Any] = {
    "minmax-ranges": MinMaxRangeObserver,
    "mse-ranges": SquaredErrorObserver,
    "percentile-ranges": PercentileObserver,
    "entropy-ranges": EntropyObserver,
}
