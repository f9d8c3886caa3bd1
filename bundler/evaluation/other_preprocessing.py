"""Common variants of preprocessing, and trials of them within a time limit."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from bundler.data.preprocessing import DEVIATION, MEAN, Channels, Preprocessing, height_and_width
from bundler.preprocessing_request import pixels_text, values_text

__all__ = ["Other", "Trials", "other_fits", "other_normalisations", "renormalised"]

Item = TypeVar("Item")
Values = tuple[float, float, float]

SECONDS = 60.0  # after which no further preprocessing is tried

ZERO, HALF, ONE = (0.0,) * 3, (0.5,) * 3, (1.0,) * 3
TO_255 = (1 / 255,) * 3  # the standard deviation with which inputs go up to 255
# Common first: torchvision's ToTensor alone; from -1 to 1; ImageNet's; from 0 to 255; that without ImageNet's mean (Caffe).
NORMALISATIONS: tuple[tuple[Values, Values], ...] = (
    (ZERO, ONE),
    (HALF, HALF),
    (MEAN, DEVIATION),
    (ZERO, TO_255),
    (MEAN, TO_255),
)
LARGER = 256 / 224  # ratio of resize to crop in the published networks of 224 pixels


@dataclass(frozen=True, kw_only=True)
class Other:
    """A variant of preprocessing, and the options of `bundler bundle` that select it."""

    preprocessing: Preprocessing
    options: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.options)


def other_normalisations(current: Preprocessing) -> list[Other]:
    """Return variants with other means, standard deviations and channel orders; geometry is unchanged."""
    others = [_normalised(current, mean, std, current.channels) for mean, std in NORMALISATIONS]
    turned: Channels = "rgb" if current.channels == "bgr" else "bgr"
    others.append(Other(preprocessing=replace(current, channels=turned), options=(f"--channels {turned}",)))
    others += [_normalised(current, mean, std, turned) for mean, std in NORMALISATIONS]
    distinct = {other.preprocessing: other for other in reversed(others) if other.preprocessing != current}
    return list(distinct.values())[::-1]


def _normalised(current: Preprocessing, mean: Values, std: Values, channels: Channels) -> Other:
    if channels == "bgr":
        mean, std = (mean[2], mean[1], mean[0]), (std[2], std[1], std[0])
    options = [f"--mean {values_text(mean)}", f"--std {values_text(std)}"]
    if channels != current.channels:
        options.append(f"--channels {channels}")
    return Other(preprocessing=replace(current, mean=mean, std=std, channels=channels), options=tuple(options))


def other_fits(current: Preprocessing) -> list[Other]:
    """Return variants with another fit or resize for the same input size, those with the current fit first."""
    size = pixels_text(current.crop)
    larger = tuple(round(LARGER * side) for side in height_and_width(current.crop))
    resized = larger[0] if larger[0] == larger[1] else (larger[0], larger[1])
    cut = ("--fit crop", f"--input-size {size}")
    candidates = (
        ("squash", current.crop, ("--fit squash", f"--input-size {size}")),
        ("crop", current.crop, cut),
        ("crop", resized, (*cut, f"--resize {pixels_text(resized)}")),
        ("letterbox", current.crop, ("--fit letterbox", f"--input-size {size}")),
    )
    others = [
        Other(preprocessing=replace(current, fit=fit, resize=resize), options=options)  # type: ignore[arg-type]
        for fit, resize, options in candidates
    ]
    distinct = [other for other in others if other.preprocessing != current]
    return sorted(distinct, key=lambda other: other.preprocessing.fit != current.fit)


def renormalised(inputs: NDArray[np.float32], current: Preprocessing, other: Preprocessing) -> NDArray[np.float32]:
    """Convert inputs, float32 [N, 3, H, W], to another mean, standard deviation and channel order."""
    pixels = inputs * _column(current.std) + _column(current.mean)
    if other.channels != current.channels:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray((pixels - _column(other.mean)) / _column(other.std))


def _column(values: Values) -> NDArray[np.float32]:
    return np.array(values, np.float32).reshape(3, 1, 1)


@dataclass
class Trials:
    """The number of finished trials, and the time that they took."""

    started: float = field(default_factory=time.monotonic)
    finished: int = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def in_time(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items until the time limit."""
        for item in items:
            if self.seconds > SECONDS:
                return
            yield item

    def __str__(self) -> str:
        limit = f" (limit: {SECONDS:.0f} s)" if self.seconds > SECONDS else ""
        return f"{self.finished} variants of the preprocessing in {self.seconds:.0f} s{limit}"
