"""GPTQ: weights of a layer are rounded column by column, and later columns compensate the rounding errors of earlier ones.

Frantar et al. 2022 (arXiv:2210.17323), applied to linear layers and convolutions, with one constraint in addition: two adjacent
weights may not sum to more than what CPUs without VNNI multiply without saturation (`bundler.quantization.saturation`).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from bundler.quantization.qconfig import is_depthwise
from bundler.quantization.saturation import MAX_PAIR_SUM

__all__ = ["Layer", "round_for_inputs", "sample_rows"]

Layer = nn.Conv2d | nn.Linear

MAX_ROWS = 4096  # of sampled convolution inputs, over all images
MIN_POSITIONS = 64  # sampled output positions per image, if there are so many images that MAX_ROWS would leave fewer
DAMPING = 0.01  # added to the diagonal, relative to its mean (the paper's value); handles inputs that are always zero
SLACK = 4  # by how much weights rounded to nearest stay below MAX_PAIR_SUM, to leave room for the compensation
BLOCK = 128  # columns that are updated at once (section 3.3 of the paper)
MAX_WEIGHT = 127  # of a symmetric int8 weight


def round_for_inputs(layer: Layer, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the rounded weights of a layer and their scales.

    Args:
        layer: with float64 weights.
        x: inputs of the layer, float64 [N, C, H, W] or [N, C].
        generator: for the random choice of output positions of a convolution; adjacent ones have similar inputs.

    Returns:
        The weights, float64 in the shape of the layer's: integers of [-127, 127] times their scale; and the scales [O],
        float64 with float32 values.
    """
    rows = sample_rows(layer, x, generator)
    return _rounded(layer, rows.transpose(1, 2) @ rows)


def sample_rows(layer: Layer, x: Tensor, generator: torch.Generator) -> Tensor:
    """Return the vectors that the layer multiplies with its weights (rows of im2col), [groups, rows, K].

    Along K, the channels of one kernel position are adjacent. For a convolution, output positions are drawn at random, the same
    ones in each image; for a linear layer, all inputs are returned.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    (pad_y, pad_x), (stride_y, stride_x) = cast("tuple[tuple[int, int], ...]", (layer.padding, layer.stride))
    (dilation_y, dilation_x), (height, width) = cast("tuple[tuple[int, int], ...]", (layer.dilation, layer.kernel_size))
    padded = nn.functional.pad(x, (pad_x, pad_x, pad_y, pad_y))
    out_height = (padded.shape[2] - dilation_y * (height - 1) - 1) // stride_y + 1
    out_width = (padded.shape[3] - dilation_x * (width - 1) - 1) // stride_x + 1
    drawn = torch.randperm(out_height * out_width, generator=generator)[: max(MAX_ROWS // len(x), MIN_POSITIONS)]
    top, left = (drawn // out_width) * stride_y, (drawn % out_width) * stride_x
    y = top[:, None, None] + dilation_y * torch.arange(height)[None, :, None]
    x_ = left[:, None, None] + dilation_x * torch.arange(width)[None, None, :]
    patches = padded[:, :, y, x_]  # [N, C, positions, kH, kW]
    images, channels = patches.shape[:2]
    grouped = patches.reshape(images, layer.groups, channels // layer.groups, len(drawn), height * width)
    return grouped.permute(1, 0, 3, 4, 2).reshape(layer.groups, images * len(drawn), -1)


def _rounded(layer: Layer, grams: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights and scales as `round_for_inputs`; `grams` are the Gram matrices of the inputs, [groups, K, K]."""
    weight = layer.weight.detach()
    rows = weight.permute(0, 2, 3, 1).flatten(1) if weight.ndim == 4 else weight
    paired = not (isinstance(layer, nn.Conv2d) and is_depthwise(layer))
    scale = (rows.abs().amax(1) / MAX_WEIGHT).clamp(min=torch.finfo(torch.float32).eps)
    if paired:
        scale = _without_saturation(rows, scale)
    scale = scale.float().double()  # the value that the INT8 layer has
    groups = len(grams)
    integers = _compensated(rows.unflatten(0, (groups, -1)), scale.unflatten(0, (groups, -1)), grams, paired=paired)
    integers = integers.flatten(0, 1)
    values = integers * scale.unsqueeze(1)
    if weight.ndim == 4:
        values = values.reshape(len(weight), *weight.shape[2:], weight.shape[1]).permute(0, 3, 1, 2).contiguous()
    return values, scale


def _without_saturation(rows: Tensor, scale: Tensor) -> Tensor:
    """Enlarge the scales [O] so that adjacent weights of `rows` [O, K], rounded to nearest, keep the limit minus SLACK."""
    if rows.shape[1] == 1:
        return scale
    pairs = (rows[:, :-1] + rows[:, 1:]).abs().amax(1)
    return torch.maximum(scale, pairs / (MAX_PAIR_SUM - SLACK))


def _compensated(rows: Tensor, scale: Tensor, grams: Tensor, *, paired: bool) -> Tensor:
    """Round the columns one after another, each corrected for the errors of the earlier ones.

    This is GPTQ in the equivalent form of Chee et al. 2023 (arXiv:2307.13304, theorem 6), which needs no inverse: the Gram
    matrix is factorized into F·D·Fᵀ with F unit upper triangular, and the correction of a column is the earlier errors times
    its column of F.

    Args:
        rows: float weights, [groups, outputs, K].
        scale: [groups, outputs].
        grams: Gram matrices of the inputs, [groups, K, K].
        paired: whether the sums of adjacent integers are limited to MAX_PAIR_SUM.

    Returns:
        The integers, [groups, outputs, K].
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
            low = torch.clamp(-MAX_PAIR_SUM - before, min=-MAX_WEIGHT) if paired else torch.full_like(before, -MAX_WEIGHT)
            high = torch.clamp(MAX_PAIR_SUM - before, max=MAX_WEIGHT) if paired else torch.full_like(before, MAX_WEIGHT)
            before = torch.clamp((value / scale).round(), low, high)
            integers[..., column] = before
            errors[..., column] = rows[..., column] - before * scale
    return integers
