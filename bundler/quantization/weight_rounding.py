"""Weights rounded layer after layer, each for what the layers before it, rounded already, will give it on a device.

The network runs twice: in float, for the mean of each output channel, and as all that has been rounded so far makes of it. A
layer is rounded when the pictures reach it (GPTQ), and its bias takes up what then still differs on average: of the rounding of
its own weights, and of everything before it (Nagel et al. 2019, arXiv:1906.04721, section 4.2, on measured means).
"""

from __future__ import annotations

import copy
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
from bundler.quantization.precision import double_precision

__all__ = ["count_layers", "product", "round_weights"]

PIXELS = 64 * 224 * 224  # of the pictures that run at once, so that larger ones do not need more memory
AT_ONCE = 8  # pictures in one convolution
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
    gptq: bool = True,
    bias_correction: bool = True,
    seed: int = 0,
    on_layer: Callable[[], None] = lambda: None,
) -> None:
    """Round the weights of a calibrated model, in place, and pin their scales for the conversion.

    Args:
        prepared: as `load_fuse_prepare` returns it, after `calibrate`.
        batches: float32 [N, 3, H, W] each, normalised: what the errors are measured on. Of large pictures, fewer are used.
        gptq: whether weights make up for each other's errors (GPTQ); otherwise each goes to the nearest value, and the
            conversion does it.
        bias_correction: whether biases make up for what then differs on average.
        seed: of the positions in the pictures that are drawn.
        on_layer: called when a layer is done.
    """
    pictures = torch.cat(list(batches))
    pictures = pictures[: max(PIXELS // pictures[0, 0].numel(), 1)].double()
    generator = torch.Generator().manual_seed(seed)
    done: dict[Layer, _Rounded] = {}

    def run(layer: Layer, x: Tensor) -> Tensor:
        if layer in done:  # a layer that runs more than once, with one set of weights
            return _products(layer, x, done[layer].weight, done[layer].bias)
        weight, scale = round_for_inputs(layer, x, generator) if gptq else (_nearest(layer), None)
        outputs, bias = _products(layer, x, weight, layer.bias), layer.bias
        if layer in wanted and bias is not None:
            missing = wanted[layer] - _channel_means(outputs)
            bias = bias + missing
            outputs += missing.reshape(-1, *[1] * (outputs.ndim - 2))
        done[layer] = _Rounded(weight=weight, bias=bias, scale=scale)
        on_layer()
        return outputs

    with double_precision(prepared), torch.no_grad():
        wanted = _wanted_means(prepared, pictures) if bias_correction else {}
        with _replaced(prepared, run, _quantized):
            prepared(pictures)
    for layer, rounded in done.items():
        if layer.bias is not None and rounded.bias is not None:
            layer.bias.data = rounded.bias.float()
        if rounded.scale is not None:
            layer.weight.data = rounded.weight.float()
            qconfig = cast("QConfig", layer.qconfig)
            pinned = QConfig(activation=qconfig.activation, weight=_Pinned.with_args(scale=rounded.scale.float()))
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
def _replaced(
    prepared: nn.Module, run: Callable[[Layer, Tensor], Tensor], observe: Callable[[ObserverBase, Tensor], Tensor]
) -> Iterator[None]:
    """Let layers do as `run` does, and observers as `observe` does instead of learning."""
    observers = [module for module in prepared.modules() if isinstance(module, ObserverBase)]
    layers = list(_layers(prepared))
    for observer in observers:
        observer.forward = partial(observe, observer)  # type: ignore[method-assign]
    for layer in layers:
        layer.forward = partial(run, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in (*observers, *layers):
            del module.forward


def _wanted_means(prepared: nn.Module, pictures: Tensor) -> dict[Layer, Tensor]:
    """Return the mean of each output channel [O] of each layer, the first time that it runs, as the float network has it."""
    sums: dict[Layer, Tensor] = {}
    for batch in pictures.split(AT_ONCE):
        seen: set[Layer] = set()

        def run(layer: Layer, x: Tensor, *, seen: set[Layer] = seen, share: float = len(batch) / len(pictures)) -> Tensor:
            outputs = product(layer, x, layer.weight, layer.bias)
            if layer not in seen:
                sums[layer] = sums.get(layer, torch.zeros(())) + share * _channel_means(outputs)
                seen.add(layer)
            return outputs

        with _replaced(prepared, run, lambda _observer, x: x):
            prepared(batch)
    return sums


def _channel_means(outputs: Tensor) -> Tensor:
    """Return the means [O] of outputs [N, O, H, W] or [N, O]."""
    return outputs.mean((0, 2, 3)) if outputs.ndim == 4 else outputs.mean(0)


def _quantized(observer: Any, x: Tensor) -> Tensor:
    scale, zero_point = copy.deepcopy(observer).float().calculate_qparams()  # as torch's conversion will have them
    return torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero_point), *LEVELS)


def _products(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return a layer's product, a few pictures at a time: convolutions in float64 copy what each output is computed from."""
    first = product(layer, x[:AT_ONCE], weight, bias)
    outputs = first.new_empty(len(x), *first.shape[1:])
    outputs[:AT_ONCE] = first
    for start in range(AT_ONCE, len(x), AT_ONCE):
        outputs[start : start + AT_ONCE] = product(layer, x[start : start + AT_ONCE], weight, bias)
    return outputs


def _nearest(layer: Layer) -> Tensor:
    """Return the weight as torch's conversion will round it."""
    observer: Any = cast("QConfig", layer.qconfig).weight()
    weight = layer.weight.detach().float()
    observer(weight)
    scale, zero_point = observer.calculate_qparams()
    limits = torch.iinfo(torch.int8)
    if len(scale) == 1:
        return torch.fake_quantize_per_tensor_affine(weight, scale, zero_point.int(), limits.min, limits.max).double()
    return torch.fake_quantize_per_channel_affine(weight, scale, zero_point.int(), 0, limits.min, limits.max).double()


def product(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what a convolution or linear layer, in float or quantized, computes of x with these weights instead of its own."""
    if weight.ndim == 2:
        return nn.functional.linear(x, weight, bias)
    return nn.functional.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
