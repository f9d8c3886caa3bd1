"""The range observers: minimum to maximum, percentile, entropy and mean squared error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from bundler.models.registry import find_model, load_parser
from bundler.quantization import calibrate
from bundler.quantization.ranges import RANGE_OBSERVERS, EntropyObserver, MinMaxRangeObserver, PercentileObserver
from bundler.targets import Ranges, find_target


def limits(observer: Any, values: Tensor) -> tuple[float, float]:
    """Return the smallest and largest value that scale and zero point of the observer can represent."""
    for part in values.split(10_000):
        observer(part)
    scale, zero_point = observer.calculate_qparams()
    return float((0 - zero_point) * scale), float((255 - zero_point) * scale)


@pytest.fixture
def values() -> Tensor:
    """100,000 values of a normal distribution, and five outliers."""
    generator = torch.Generator().manual_seed(0)
    return torch.cat((torch.randn(100_000, generator=generator), torch.tensor([40.0, 41, -40, 44, 50])))


def test_the_minmax_range_includes_outliers(values: Tensor) -> None:
    assert limits(MinMaxRangeObserver(), values) == pytest.approx((-40, 50), rel=0.02)


def test_the_percentile_range_excludes_outliers(values: Tensor) -> None:
    low, high = limits(PercentileObserver(), values)
    expected = values.quantile(torch.tensor([0.5e-4, 1 - 0.5e-4])).tolist()
    assert max(-expected[0], expected[1]) < 6  # without the outliers
    assert (low, high) == pytest.approx(expected, abs=0.18)  # four bins of the histogram


@pytest.mark.parametrize("sign", [1, -1])
def test_the_entropy_range_excludes_outliers_and_includes_zero(values: Tensor, sign: int) -> None:
    low, high = limits(EntropyObserver(), sign * values)
    assert 3 < -low < 15
    assert 3 < high < 15
    positive = values.clamp(min=0)
    low, high = limits(EntropyObserver(), sign * positive)
    assert (low if sign == 1 else high) == 0  # no negative values were observed


def test_the_entropy_range_of_a_uniform_distribution_is_the_whole_range() -> None:
    even = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    low, high = limits(EntropyObserver(), even)
    assert (low, high) == pytest.approx((0, 1), abs=0.02)


@pytest.mark.parametrize("target", ["x86", "arm64"])
@pytest.mark.parametrize("ranges", get_args(Ranges))
def test_the_range_option_of_a_profile_applies_to_the_whole_network(
    ranges: Ranges, target: str, weights_of: Callable[[str], Mapping[str, Tensor]], calibration: Tensor
) -> None:
    """Including the clamped observers before ReLU6; the scales differ from those of another range option."""
    profile = find_target(target).quantization

    def scales(quantization: Any) -> list[float]:
        model: nn.Module = load_parser(find_model("mobilenet_v2")[1])(
            weights=weights_of("mobilenet_v2"), num_classes=10, quantize=True, target=quantization
        )
        calibrate(model, calibration.split(8))
        observers: list[Any] = [item for item in model.modules() if hasattr(item, "calculate_qparams")]
        assert all(isinstance(item, RANGE_OBSERVERS[quantization.ranges]) for item in observers)
        return [float(item.calculate_qparams()[0]) for item in observers]

    with_ranges = profile.with_option(ranges)
    assert with_ranges.ranges == ranges
    chosen, own = scales(with_ranges), scales(profile.with_option("minmax-ranges" if ranges == "mse-ranges" else "mse-ranges"))
    assert len(chosen) == len(own) > 50
    assert all(math.isfinite(scale) and scale > 0 for scale in chosen)
    different = sum(not math.isclose(a, b, rel_tol=1e-3) for a, b in zip(chosen, own, strict=True))
    assert different > len(own) / 4
