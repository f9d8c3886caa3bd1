"""Weights rounded for what they are multiplied with, each error made up for by the weights that follow (GPTQ).

Frantar et al. 2022 (arXiv:2210.17323), for convolutions as well, and with one condition more: no two neighbours in a row may
add up to more than a processor without VNNI can multiply (`bundler.quantization.saturation`).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from bundler.quantization.qconfig import is_depthwise
from bundler.quantization.saturation import LARGEST_SUM

__all__ = ["Layer", "round_for_inputs"]

Layer = nn.Conv2d | nn.Linear

ROWS = 4096  # of a layer's inputs that are looked at, from all pictures together
POSITIONS = 64  # of each picture at least
DAMPING = 0.01  # of the mean of the diagonal (the paper's value), so that inputs that are always zero do no harm
SLACK = 4  # by which the first rounding stays below the largest sum, for the corrections that follow
BLOCK = 128  # columns that take over the errors of all earlier ones at once (section 3.3 of the paper)
LARGEST = 127  # of a symmetric int8 weight


def round_for_inputs(layer: Layer, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return a layer's weights as multiples of their scales, in their own shape, and the scales [O], each a float32 value.

    Args:
        layer: with its float weights, as float64.
        x: what it will be given, float64 [N, C, H, W] or [N, C].
        generator: draws positions in the pictures, of which neighbours tell nearly the same.
    """
    rows = _rows(layer, x, generator)
    return _rounded(layer, rows.transpose(1, 2) @ rows)


def _rows(layer: Layer, x: Tensor, generator: torch.Generator) -> Tensor:
    """Return what the layer's weights are multiplied with, [groups, rows, K]; in K, channels lie beside each other."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    (pad_y, pad_x), (step_y, step_x) = cast("tuple[tuple[int, int], ...]", (layer.padding, layer.stride))
    (reach_y, reach_x), (height, width) = cast("tuple[tuple[int, int], ...]", (layer.dilation, layer.kernel_size))
    padded = nn.functional.pad(x, (pad_x, pad_x, pad_y, pad_y))
    down = (padded.shape[2] - reach_y * (height - 1) - 1) // step_y + 1
    across = (padded.shape[3] - reach_x * (width - 1) - 1) // step_x + 1
    drawn = torch.randperm(down * across, generator=generator)[: max(ROWS // len(x), POSITIONS)]
    top, left = (drawn // across) * step_y, (drawn % across) * step_x
    y = top[:, None, None] + reach_y * torch.arange(height)[None, :, None]
    x_ = left[:, None, None] + reach_x * torch.arange(width)[None, None, :]
    patches = padded[:, :, y, x_]  # [N, C, positions, kH, kW]
    pictures, channels = patches.shape[:2]
    grouped = patches.reshape(pictures, layer.groups, channels // layer.groups, len(drawn), height * width)
    return grouped.permute(1, 0, 3, 4, 2).reshape(layer.groups, pictures * len(drawn), -1)


def _rounded(layer: Layer, grams: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights as multiples of their scales, and the scales [O]."""
    weight = layer.weight.detach()
    rows = weight.permute(0, 2, 3, 1).flatten(1) if weight.ndim == 4 else weight
    paired = not (isinstance(layer, nn.Conv2d) and is_depthwise(layer))
    scale = (rows.abs().amax(1) / LARGEST).clamp(min=torch.finfo(torch.float32).eps)
    if paired:
        scale = _within_sums(rows, scale)
    scale = scale.float().double()  # as the device has it
    groups = len(grams)
    integers = _compensated(rows.unflatten(0, (groups, -1)), scale.unflatten(0, (groups, -1)), grams, paired=paired)
    integers = integers.flatten(0, 1)
    values = integers * scale.unsqueeze(1)
    if weight.ndim == 4:
        values = values.reshape(len(weight), *weight.shape[2:], weight.shape[1]).permute(0, 3, 1, 2).contiguous()
    return values, scale


def _within_sums(rows: Tensor, scale: Tensor) -> Tensor:
    """Enlarge the scale of each channel until its neighbours, rounded as they are, keep clear of the largest sum."""
    if rows.shape[1] == 1:
        return scale
    pairs = (rows[:, :-1] + rows[:, 1:]).abs().amax(1)
    return torch.maximum(scale, pairs / (LARGEST_SUM - SLACK))


def _compensated(rows: Tensor, scale: Tensor, grams: Tensor, *, paired: bool) -> Tensor:
    """Round column after column; what one loses, the later ones make up for as far as the inputs go together.

    In the form of Chee et al. 2023 (arXiv:2307.13304, theorem 6), which is the same and needs no inverse: with the inputs' gram
    matrix as F·D·Fᵀ, F upper triangular with a diagonal of ones, a column takes over the earlier errors times its column of F.
    `rows` is [groups, outputs, K], `scale` [groups, outputs], `grams` [groups, K, K].
    """
    damped = grams.clone()
    diagonal = damped.diagonal(dim1=1, dim2=2)
    diagonal.add_(DAMPING * diagonal.mean(1, keepdim=True).clamp(min=1e-8))
    root = torch.linalg.cholesky(damped.flip(1, 2)).flip(1, 2)
    feedback = root / root.diagonal(dim1=1, dim2=2).unsqueeze(1)
    integers, errors = torch.empty_like(rows), torch.empty_like(rows)
    before = torch.zeros_like(scale)
    for start in range(0, rows.shape[2], BLOCK):
        block = slice(start, min(start + BLOCK, rows.shape[2]))
        values = rows[..., block] + errors[..., :start] @ feedback[:, :start, block]
        for column in range(block.start, block.stop):
            earlier = errors[..., start:column] @ feedback[:, start:column, column : column + 1]
            value = values[..., column - start] + earlier.squeeze(2)
            low = torch.clamp(-LARGEST_SUM - before, min=-LARGEST) if paired else torch.full_like(before, -LARGEST)
            high = torch.clamp(LARGEST_SUM - before, max=LARGEST) if paired else torch.full_like(before, LARGEST)
            before = torch.clamp((value / scale).round(), low, high)
            integers[..., column] = before
            errors[..., column] = rows[..., column] - before * scale
    return integers
