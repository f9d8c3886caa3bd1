"""Activations of the YOLO detectors by name, as in a checkpoint or a cfg: "SiLU", "LeakyReLU(0.1)"."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from torch import nn

__all__ = ["ACTIVATIONS", "describe_activations", "leaky_relu", "make_activation"]

# Activations with an INT8 form in torch or bundler.quantization.
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "SiLU": nn.SiLU,
    "Hardswish": nn.Hardswish,
    "Mish": nn.Mish,
    "ReLU": nn.ReLU,
    "Identity": nn.Identity,
}
_LEAKY = re.compile(r"LeakyReLU\(([0-9.e+-]+)\)")


def leaky_relu(negative_slope: float) -> str:
    """Return the name of a LeakyReLU."""
    return f"LeakyReLU({negative_slope:g})"


def make_activation(name: str) -> nn.Module:
    """Return a new module.

    Raises:
        ValueError: no activation has that name.
    """
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]()
    if leaky := _LEAKY.fullmatch(name):
        return nn.LeakyReLU(float(leaky[1]))
    msg = f"unknown activation {name!r}; supported are {', '.join(ACTIVATIONS)} and LeakyReLU(slope)"
    raise ValueError(msg)


def describe_activations(names: Sequence[str]) -> str:
    """Return the activations of a network with their counts, most common first: "72 Mish, 35 LeakyReLU(0.1)"."""
    return ", ".join(f"{count} {name}" for name, count in Counter(names).most_common())
