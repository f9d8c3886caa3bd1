"""LayerPlot: each layer's SQNR as points of a drawing, for the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bundler.manifest import LayerRecord

__all__ = ["LayerPlot", "Mark", "plot_layers"]

WIDTH, HEIGHT = 960, 320  # of the whole drawing
LEFT, TOP, BOTTOM = 48, 12, 28  # margins, for the axes
STEP_DB = 10


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One layer: its place from left to right, and the heights of its two figures, None where it has none."""

    name: str
    x: float
    outputs_y: float | None
    weights_y: float | None
    text: str


@dataclass(frozen=True, kw_only=True)
class LayerPlot:
    """A drawing of `width` by `height`, with horizontal lines at the decibels of `grid`."""

    width: int
    height: int
    left: int
    bottom: int
    marks: tuple[Mark, ...]
    grid: tuple[tuple[int, float], ...]

    @property
    def line(self) -> str:
        """The points of the line through the outputs, as SVG writes them."""
        return " ".join(f"{mark.x},{mark.outputs_y}" for mark in self.marks if mark.outputs_y is not None)


def plot_layers(layers: Sequence[LayerRecord]) -> LayerPlot:
    """Lay the layers out from left to right as they are executed, and their decibels from the lowest (0 or less) up."""
    figures = [value for layer in layers for value in (layer.output_sqnr_db, layer.weight_sqnr_db) if value is not None]
    low = min(STEP_DB * math.floor(min(figures, default=0) / STEP_DB), 0)
    high = max(STEP_DB * math.ceil(max(figures, default=0) / STEP_DB), low + STEP_DB)

    def y(value: float | None) -> float | None:
        return None if value is None else round(TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    step = (WIDTH - LEFT) / max(len(layers), 1)
    return LayerPlot(
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        bottom=HEIGHT - BOTTOM,
        marks=tuple(
            Mark(
                name=layer.name,
                x=round(LEFT + (index + 0.5) * step, 1),
                outputs_y=y(layer.output_sqnr_db),
                weights_y=y(layer.weight_sqnr_db),
                text=f"{layer.name}: outputs {_decibel(layer.output_sqnr_db)}, weights {_decibel(layer.weight_sqnr_db)}",
            )
            for index, layer in enumerate(layers)
        ),
        grid=tuple((value, y(value) or 0.0) for value in range(low, high + 1, STEP_DB)),
    )


def _decibel(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} dB"
