"""Observers that estimate the range of an activation: minimum to maximum, percentile, entropy, and mean squared error.

Each evaluates the histogram of 2048 bins that torch's `HistogramObserver` records.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.ao.quantization.observer import HistogramObserver

from bundler.quantization.precision import double_precision
from bundler.targets import Ranges

__all__ = ["RANGE_OBSERVERS", "EntropyObserver", "MinMaxRangeObserver", "PercentileObserver", "SquaredErrorObserver"]

EXCLUDED = 1e-4  # share of the values outside of the percentile range, half of them at each end
CANDIDATES = 96  # ranges that are compared by their divergence, from the whole histogram down to SMALLEST_RANGE of it
SMALLEST_RANGE = 1 / 8
MIN_PROBABILITY = 1e-4  # times the average probability of a bin: replaces zeros, for which the divergence is infinite

Range = tuple[Tensor, Tensor]


class MinMaxRangeObserver(HistogramObserver):
    """Minimum to maximum of the observed values."""

    def _non_linear_param_search(self) -> Range:
        return self.min_val, self.max_val


class SquaredErrorObserver(HistogramObserver):
    """Torch's search for the smallest mean squared error, computed in float64, so that its result is the same on every CPU."""

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
    """The percentile range, 99.99 % of the values (Wu et al. 2020, arXiv:2004.09602, section 3.1)."""

    def _non_linear_param_search(self) -> Range:
        share = self.histogram.double().cumsum(0) / self.histogram.double().sum()
        edges = torch.linspace(float(self.min_val), float(self.max_val), self.bins + 1)
        low = int(torch.searchsorted(share, EXCLUDED / 2))
        high = int(torch.searchsorted(share, 1 - EXCLUDED / 2))
        return edges[min(low, self.bins - 1)], edges[min(high, self.bins - 1) + 1]


class EntropyObserver(HistogramObserver):
    """The range with the smallest Kullback-Leibler divergence between the float and the quantized distribution.

    Migacz 2017, "8-bit Inference with TensorRT". Both ends are scaled towards zero by the same factor.
    """

    def _non_linear_param_search(self) -> Range:
        histogram = self.histogram.double()
        zero = float(-self.min_val / (self.max_val - self.min_val)) * self.bins  # position in the histogram, in bins
        zero = min(max(zero, 0.0), float(self.bins))
        best, ends = torch.inf, (0, self.bins)
        for share in torch.linspace(1, SMALLEST_RANGE, CANDIDATES).tolist():
            low, high = round(zero - zero * share), round(zero + (self.bins - zero) * share)
            divergence = _divergence(histogram, low, high, self.dst_nbins)
            if divergence < best:
                best, ends = divergence, (low, high)
        width = (self.max_val - self.min_val) / self.bins
        return self.min_val + width * ends[0], self.min_val + width * ends[1]


def _divergence(histogram: Tensor, low: int, high: int, levels: int) -> float:
    """Return the divergence, in nats, of the histogram quantized to `levels` values over the bins from `low` to `high`.

    Counts outside of these bins are added to the first and the last one.
    """
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
    spread = filled * (mass / count.clamp(min=1))[level]  # each level is spread evenly over its bins that are not empty
    p, q = clipped / clipped.sum(), spread / spread.sum()
    nonzero = p > 0
    ratio = p[nonzero] / q[nonzero].clamp(min=MIN_PROBABILITY / len(q))
    return float((p[nonzero] * ratio.log()).sum())


RANGE_OBSERVERS: dict[Ranges, Any] = {
    "minmax-ranges": MinMaxRangeObserver,
    "mse-ranges": SquaredErrorObserver,
    "percentile-ranges": PercentileObserver,
    "entropy-ranges": EntropyObserver,
}
