"""Weights rounded layer after layer, each for what the layers before it, rounded already, will give it on a device.

The network runs once, with every picture twice: in float, and as all that has been rounded so far makes of it. A layer is
rounded when the pictures reach it (GPTQ), and its bias takes up what then still differs on average: of the rounding of its own
weights, and of everything before it (Nagel et al. 2019, arXiv:1906.04721, section 4.2, on measured means).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.ao.quantization import ObserverBase, QConfig
from torch.ao.quantization.observer import PerChannelMinMaxObserver

from bundler.quantization.gptq import Layer, round_for_inputs

__all__ = ["count_layers", "product", "round_weights"]

PIXELS = 64 * 224 * 224  # of the pictures that run at once, so that larger ones do not need more memory
LEVELS = (0, 255)  # of quint8, which is what every activation becomes


@dataclass(frozen=True, kw_only=True)
class _Rounded:
    """A layer's weight as INT8 holds it, its bias, and the scales [O]; None where torch chooses them when it converts."""

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None


def count_layers(prepared: nn.Module) -> int:
    """Return how many layers `round_weights` will round."""
    return sum(1 for _ in _layers(prepared))


def round_weights(
    prepared: nn.Module,
    batches: Iterable[Tensor],
    *,
    compensated: bool = True,
    corrected: bool = True,
    seed: int = 0,
    on_layer: Callable[[], None] = lambda: None,
) -> None:
    """Round the weights of a calibrated model, in place, and pin their scales for the conversion.

    Args:
        prepared: as `load_fuse_prepare` returns it, after `calibrate`.
        batches: float32 [N, 3, H, W] each, normalised: what the errors are measured on. Of large pictures, fewer are used.
        compensated: whether weights make up for each other's errors (GPTQ); otherwise each goes to the nearest value, and the
            conversion does it.
        corrected: whether biases make up for what then differs on average.
        seed: of the positions in the pictures that are drawn.
        on_layer: called when a layer is done.
    """
    pictures = torch.cat(list(batches))
    pictures = pictures[: max(PIXELS // pictures[0, 0].numel(), 1)]
    generator = torch.Generator().manual_seed(seed)
    done: dict[Layer, _Rounded] = {}

    def run(layer: Layer, x: Tensor) -> Tensor:
        exact, given = x.chunk(2)
        wanted = product(layer, exact, layer.weight, layer.bias)
        if layer not in done:
            done[layer] = _round(layer, given, wanted, generator if compensated else None, corrected=corrected)
            on_layer()
        return torch.cat([wanted, product(layer, given, done[layer].weight, done[layer].bias)])

    with _side_by_side(prepared, run), torch.no_grad():
        prepared(torch.cat([pictures, pictures]))
    for layer, rounded in done.items():
        if layer.bias is not None and rounded.bias is not None:
            layer.bias.data = rounded.bias
        if rounded.scale is not None:
            layer.weight.data = rounded.weight
            qconfig = cast("QConfig", layer.qconfig)
            pinned = QConfig(activation=qconfig.activation, weight=_Pinned.with_args(scale=rounded.scale))
            layer.qconfig = pinned  # type: ignore[assignment]


class _Pinned(PerChannelMinMaxObserver):
    """Answers with the scales with which the weights were rounded."""

    def __init__(self, *, scale: Tensor, **kwargs: Any) -> None:
        super().__init__(ch_axis=0, dtype=torch.qint8, qscheme=torch.per_channel_symmetric, **kwargs)
        self.scale = scale

    def calculate_qparams(self, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.scale, torch.zeros(len(self.scale), dtype=torch.int64)


def _layers(model: nn.Module) -> Iterator[Layer]:
    """Yield what will be INT8: convolutions and linear layers with a qconfig."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and getattr(module, "qconfig", None) is not None:
            yield module


@contextmanager
def _side_by_side(prepared: nn.Module, run: Callable[[Layer, Tensor], Tensor]) -> Iterator[None]:
    """Let layers do as `run` does, and observers round the second half of a batch instead of learning from it."""
    observers = [module for module in prepared.modules() if isinstance(module, ObserverBase)]
    layers = list(_layers(prepared))
    for observer in observers:
        observer.forward = partial(_observed, observer)  # type: ignore[method-assign]
    for layer in layers:
        layer.forward = partial(run, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in (*observers, *layers):
            del module.forward


def _observed(observer: Any, x: Tensor) -> Tensor:
    exact, given = x.chunk(2)
    scale, zero_point = observer.calculate_qparams()
    return torch.cat([exact, torch.fake_quantize_per_tensor_affine(given, scale, zero_point.int(), *LEVELS)])


def _round(layer: Layer, given: Tensor, wanted: Tensor, generator: torch.Generator | None, *, corrected: bool) -> _Rounded:
    if generator is not None:
        weight, scale = round_for_inputs(layer, given, generator)
    else:
        weight, scale = _nearest(layer), None
    bias = layer.bias
    if corrected and bias is not None:
        missing = wanted - product(layer, given, weight, bias)
        bias = bias + (missing.mean((0, 2, 3)) if missing.ndim == 4 else missing.mean(0))
    return _Rounded(weight=weight, bias=bias, scale=scale)


def _nearest(layer: Layer) -> Tensor:
    """Return the weight as torch's conversion will round it."""
    observer: Any = cast("QConfig", layer.qconfig).weight()
    observer(layer.weight)
    scale, zero_point = observer.calculate_qparams()
    limits = torch.iinfo(torch.int8)
    if len(scale) == 1:
        return torch.fake_quantize_per_tensor_affine(layer.weight, scale, zero_point.int(), limits.min, limits.max)
    return torch.fake_quantize_per_channel_affine(layer.weight, scale, zero_point.int(), 0, limits.min, limits.max)


def product(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what a convolution or linear layer, in float or quantized, computes of x with these weights instead of its own."""
    if weight.ndim == 2:
        return nn.functional.linear(x, weight, bias)
    return nn.functional.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
