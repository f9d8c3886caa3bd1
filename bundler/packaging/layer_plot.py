"""LayerPlot: the SQNR of each layer as points of an SVG plot in the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bundler.manifest import LayerRecord

__all__ = ["LayerPlot", "Mark", "plot_layers"]

WIDTH, HEIGHT = 960, 320  # pixels, of the whole plot
LEFT, TOP, BOTTOM = 48, 12, 28  # pixels, margins for the axes
STEP_DB = 10


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One layer: its x coordinate, and the y coordinates of its two values, None if it has none."""

    name: str
    x: float
    outputs_y: float | None
    weights_y: float | None
    text: str


@dataclass(frozen=True, kw_only=True)
class LayerPlot:
    """A plot of `width` by `height` pixels; `grid` has the value in dB and the y coordinate of each horizontal line."""

    width: int
    height: int
    left: int
    bottom: int
    marks: tuple[Mark, ...]
    grid: tuple[tuple[int, float], ...]

    @property
    def line(self) -> str:
        """The `points` attribute of the SVG polyline through the output SQNRs."""
        return " ".join(f"{mark.x},{mark.outputs_y}" for mark in self.marks if mark.outputs_y is not None)


def plot_layers(layers: Sequence[LayerRecord]) -> LayerPlot:
    """Return the plot of `layers` in execution order from left to right; the y axis begins at the lowest SQNR or 0 dB."""
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
