"""How far two sets of outputs are apart, and whether outputs can reveal an error at all."""

from __future__ import annotations

import hashlib
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["decibels", "informative_problem", "outputs_sha256", "sqnr_db", "top1_agreement"]

Outputs = NDArray[np.float32]

COORDINATES: Final = 4  # of a box, before its scores
LEAST_MAGNITUDE: Final = 1e-3
LEAST_SPREAD: Final = 1e-3  # standard deviation, as a share of the magnitude


def decibels(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise) of two powers: inf without noise, else -inf without a signal."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def sqnr_db(reference: Outputs, outputs: Outputs) -> float:
    """Return the signal to quantization noise ratio, 10 log10(Σ reference² / Σ (outputs - reference)²) dB; inf when equal.

    Of detections [N, boxes, 5 + classes] it is the lower one of boxes and scores: coordinates in pixels are a hundred times as
    large as scores, whose noise would not count beside them.
    """
    if reference.ndim == 3:
        parts = (slice(None, COORDINATES), slice(COORDINATES, None))
        return min(_sqnr_db(reference[..., part], outputs[..., part]) for part in parts)
    return _sqnr_db(reference, outputs)


def _sqnr_db(reference: Outputs, outputs: Outputs) -> float:
    wide = reference.astype(np.float64)
    return decibels(float(np.sum(np.square(wide))), float(np.sum(np.square(wide - outputs))))


def top1_agreement(reference: Outputs, outputs: Outputs) -> float:
    """Return the share of images whose highest class is the same; outputs [N, classes]."""
    return float(np.mean(reference.argmax(1) == outputs.argmax(1)))


def outputs_sha256(outputs: Outputs) -> str:
    """Return the SHA-256 of the little-endian float32 values in their order."""
    return hashlib.sha256(outputs.astype("<f4").tobytes()).hexdigest()


def informative_problem(outputs: Outputs) -> str:
    """Return why outputs [N, classes] or [N, boxes, 5 + classes] would hide an error; empty if they are informative.

    A freshly initialised network outputs almost exactly zero for every input, so that a comparison would detect no error. The
    scores of a detector have to differ from box to box; its coordinates do so even if the scores are constant. Outputs of a
    single image are not compared from image to image.
    """
    if not np.isfinite(outputs).all():
        return "the outputs are not finite"
    scores, across = outputs, "class"
    if outputs.ndim == 3:
        if not outputs[..., :COORDINATES].any():
            return "the coordinates of all boxes are zero"
        scores, across = outputs[..., COORDINATES:], "box"
    magnitude = float(np.abs(scores).max())
    if magnitude < LEAST_MAGNITUDE:
        return f"the outputs are almost zero (largest {magnitude:.2g})"
    if float(scores.std(axis=1).max()) < LEAST_SPREAD * magnitude:
        return f"the outputs are the same for every {across}"
    if len(scores) > 1 and float(scores.std(axis=0).max()) < LEAST_SPREAD * magnitude:
        return "the outputs are the same for every image"
    return ""
