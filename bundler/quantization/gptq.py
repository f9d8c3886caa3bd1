"""Weights rounded for what they are multiplied with, each error made up for by the weights that follow (GPTQ).

Frantar et al. 2022 (arXiv:2210.17323), for convolutions as well, and with one condition more: no two neighbours in a row may
add up to more than a processor without VNNI can multiply (`bundler.quantization.saturation`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.ao.quantization import QConfig
from torch.ao.quantization.observer import PerChannelMinMaxObserver

from bundler.quantization.qconfig import is_depthwise
from bundler.quantization.saturation import LARGEST_SUM

__all__ = ["count_layers", "round_weights"]

Layer = nn.Conv2d | nn.Linear

POSITIONS = 64  # of each picture and layer, drawn at random: neighbouring positions tell nearly the same
DAMPING = 0.01  # of the mean of the diagonal (the paper's value), so that inputs that are always zero do no harm
SLACK = 4  # by which the first rounding stays below the largest sum, for the corrections that follow
BLOCK = 128  # columns that take over the errors of all earlier ones at once (section 3.3 of the paper)
LARGEST = 127  # of a symmetric int8 weight


def count_layers(prepared: nn.Module) -> int:
    """Return how many layers `round_weights` will round."""
    return sum(1 for _ in _layers(prepared))


def round_weights(
    prepared: nn.Module, batches: Iterable[Tensor], *, seed: int = 0, on_layer: Callable[[], None] = lambda: None
) -> None:
    """Round the weights of a calibrated model, in place, and pin their scales for the conversion.

    Args:
        prepared: as `load_fuse_prepare` returns it, after `calibrate`.
        batches: float32 [N, 3, H, W] each, normalised: what the errors are measured on.
        seed: of the positions that are drawn.
        on_layer: called when a layer is done.
    """
    layers = dict(_layers(prepared))
    grams = _gram_matrices(prepared, layers, batches, torch.Generator().manual_seed(seed))
    for name, layer in layers.items():
        weight, scale = _rounded(layer, grams.pop(name))
        layer.weight.data = weight
        qconfig = cast("QConfig", layer.qconfig)
        pinned = QConfig(activation=qconfig.activation, weight=_Pinned.with_args(scale=scale))
        layer.qconfig = pinned  # type: ignore[assignment]
        on_layer()


class _Pinned(PerChannelMinMaxObserver):
    """Answers with the scales with which the weights were rounded."""

    def __init__(self, *, scale: Tensor, **kwargs: Any) -> None:
        super().__init__(ch_axis=0, dtype=torch.qint8, qscheme=torch.per_channel_symmetric, **kwargs)
        self.scale = scale

    def calculate_qparams(self, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.scale, torch.zeros(len(self.scale), dtype=torch.int64)


def _layers(model: nn.Module) -> Iterator[tuple[str, Layer]]:
    """Yield what will be INT8: convolutions and linear layers with a qconfig."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and getattr(module, "qconfig", None) is not None:
            yield name, module


def _gram_matrices(
    model: nn.Module, layers: dict[str, Layer], batches: Iterable[Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """Return, for each layer, what its inputs have in common: X·Xᵀ, float32 [groups, K, K]."""
    grams: dict[str, Tensor] = {}

    def watch(name: str, layer: Layer) -> Callable[..., None]:
        def add(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = _rows(layer, inputs[0], generator)
            gram = rows.transpose(1, 2) @ rows
            grams[name] = grams[name] + gram if name in grams else gram

        return add

    hooks = [layer.register_forward_pre_hook(watch(name, layer)) for name, layer in layers.items()]
    try:
        with torch.inference_mode():
            for batch in batches:
                model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return grams


def _rows(layer: Layer, x: Tensor, generator: torch.Generator) -> Tensor:
    """Return what the layer's weights are multiplied with, [groups, rows, K]; in K, channels lie beside each other."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    (pad_y, pad_x), (step_y, step_x) = cast("tuple[tuple[int, int], ...]", (layer.padding, layer.stride))
    (reach_y, reach_x), (height, width) = cast("tuple[tuple[int, int], ...]", (layer.dilation, layer.kernel_size))
    padded = nn.functional.pad(x, (pad_x, pad_x, pad_y, pad_y))
    down = (padded.shape[2] - reach_y * (height - 1) - 1) // step_y + 1
    across = (padded.shape[3] - reach_x * (width - 1) - 1) // step_x + 1
    drawn = torch.randperm(down * across, generator=generator)[:POSITIONS]
    top, left = (drawn // across) * step_y, (drawn % across) * step_x
    y = top[:, None, None] + reach_y * torch.arange(height)[None, :, None]
    x_ = left[:, None, None] + reach_x * torch.arange(width)[None, None, :]
    patches = padded[:, :, y, x_]  # [N, C, positions, kH, kW]
    pictures, channels = patches.shape[:2]
    grouped = patches.reshape(pictures, layer.groups, channels // layer.groups, len(drawn), height * width)
    return grouped.permute(1, 0, 3, 4, 2).reshape(layer.groups, pictures * len(drawn), -1)


def _rounded(layer: Layer, grams: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights as multiples of their scales, and the scales, float32 [O]."""
    weight = layer.weight.detach()
    rows = weight.permute(0, 2, 3, 1).flatten(1) if weight.ndim == 4 else weight
    paired = not (isinstance(layer, nn.Conv2d) and is_depthwise(layer))
    scale = (rows.abs().amax(1) / LARGEST).clamp(min=torch.finfo(torch.float32).eps)
    if paired:
        scale = _within_sums(rows, scale)
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
    damped = grams.double()
    diagonal = damped.diagonal(dim1=1, dim2=2)
    diagonal.add_(DAMPING * diagonal.mean(1, keepdim=True).clamp(min=1e-8))
    root = torch.linalg.cholesky(damped.flip(1, 2)).flip(1, 2)
    feedback = (root / root.diagonal(dim1=1, dim2=2).unsqueeze(1)).float()
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
