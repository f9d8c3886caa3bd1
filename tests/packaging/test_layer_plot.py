"""The plot of layers: execution order from left to right, a higher SQNR is higher, missing values are omitted."""

from __future__ import annotations

import pytest

from bundler.manifest import LayerRecord
from bundler.packaging.layer_plot import plot_layers


def layer(name: str, outputs: float | None, weights: float | None = None) -> LayerRecord:
    return LayerRecord(name=name, output_sqnr_db=outputs, weight_sqnr_db=weights)


def test_layers_are_in_execution_order_and_a_higher_sqnr_is_higher() -> None:
    plot = plot_layers([layer("a", 45.0, 40.0), layer("b", 20.0), layer("c", None, 35.0)])
    assert [mark.name for mark in plot.marks] == ["a", "b", "c"]
    first, second, third = plot.marks
    assert plot.left < first.x < second.x < third.x < plot.width
    assert first.outputs_y is not None
    assert second.outputs_y is not None
    assert first.weights_y is not None
    assert 0 < first.outputs_y < first.weights_y < second.outputs_y < plot.bottom
    assert (second.weights_y, third.outputs_y) == (None, None)
    assert plot.line.split() == [f"{first.x},{first.outputs_y}", f"{second.x},{second.outputs_y}"]
    assert "outputs -, weights 35.0 dB" in third.text


@pytest.mark.parametrize(
    ("figures", "grid"), [((45.0, 20.0), [0, 10, 20, 30, 40, 50]), ((-3.0, 8.0), [-10, 0, 10]), ((), [0, 10])]
)
def test_the_grid_covers_every_value(figures: tuple[float, ...], grid: list[int]) -> None:
    plot = plot_layers([layer(str(figure), figure) for figure in figures])
    assert [value for value, _ in plot.grid] == grid
    heights = [y for _, y in plot.grid]
    assert heights == sorted(heights, reverse=True)
    assert all(heights[-1] <= (mark.outputs_y or 0) <= heights[0] for mark in plot.marks)
