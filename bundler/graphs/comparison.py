"""How far two sets of outputs are apart, and whether the outputs say anything at all."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["informative_problem", "sqnr_db", "top1_agreement"]

Outputs = NDArray[np.float32]
COORDINATES = 4  # of a box, before its scores


def sqnr_db(reference: Outputs, outputs: Outputs) -> float:
    """Return the signal to quantization noise ratio, 10 log10(Σ reference² / Σ (outputs - reference)²) dB; inf when equal.

    Of detections [N, boxes, 5 + classes] it is the lower one of boxes and scores: pixels would drown the scores.
    """
    if reference.ndim == 3:
        return min(sqnr_db(old.reshape(len(old), -1), new.reshape(len(new), -1)) for old, new in _parts(reference, outputs))
    signal = float(np.sum(np.square(reference, dtype=np.float64)))
    noise = float(np.sum(np.square(reference.astype(np.float64) - outputs)))
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _parts(reference: Outputs, outputs: Outputs) -> list[tuple[Outputs, Outputs]]:
    return [
        (reference[..., :COORDINATES], outputs[..., :COORDINATES]),
        (reference[..., COORDINATES:], outputs[..., COORDINATES:]),
    ]


def top1_agreement(reference: Outputs, outputs: Outputs) -> float:
    """Return the share of pictures ([N, classes]) whose highest class is the same."""
    return float(np.mean(reference.argmax(1) == outputs.argmax(1)))


def informative_problem(outputs: Outputs) -> str:
    """Return why outputs [N, classes] or [N, boxes, 5 + classes], N ≥ 2, would hide an error; empty where they are informative.

    A freshly initialised network outputs almost exactly zero, whatever it is given, and then agrees with any bug.
    """
    if not np.isfinite(outputs).all():
        return "the outputs are not finite"
    if outputs.ndim == 3:  # boxes lie in their cells even where the network is dead
        outputs = outputs[..., COORDINATES:].reshape(len(outputs), -1)
    magnitude = float(np.abs(outputs).max())
    if magnitude < 1e-3:
        return f"the outputs are almost zero (largest {magnitude:.2g})"
    if float(outputs.std(axis=1).max()) < 1e-3 * magnitude:
        return "the outputs are the same for every class"
    if float(outputs.std(axis=0).max()) < 1e-3 * magnitude:
        return "the outputs are the same for every picture"
    return ""
