"""DarknetArchitecture: what a cfg says of a YOLOv3 or YOLOv4 that its weights do not show."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DarknetArchitecture"]


@dataclass(frozen=True, kw_only=True)
class DarknetArchitecture:
    """Anchors, decoding and activations.

    Args:
        anchors: widths and heights in pixels, [scale][anchor][2], for strides 8, 16 and 32.
        xy_scales: `scale_x_y` for strides 8, 16 and 32.
        activations: of the convolutions that have a BatchNorm, in the cfg's order; None for the published network's.
    """

    anchors: tuple[tuple[tuple[float, float], ...], ...]
    xy_scales: tuple[float, ...]
    activations: tuple[str, ...] | None = None
