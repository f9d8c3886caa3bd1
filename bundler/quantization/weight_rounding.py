"""Weight rounding layer by layer (GPTQ), with bias correction; each layer gets the quantized activations of those before it.

The network is run twice: in float, to measure the mean of each output channel of each layer; and quantized, as far as layers
have been rounded. When the inputs reach a layer, its weights are rounded for these inputs, and its bias is corrected by the
difference of the means, which includes the errors of all preceding layers (Nagel et al. 2019, arXiv:1906.04721, section 4.2,
with measured means).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
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

__all__ = ["count_layers", "product", "replaced_forwards", "round_weights"]

MAX_PIXELS = 64 * 224 * 224  # of the images that are used, to limit memory
CHUNK = 8  # images that a convolution computes at once
QUINT8 = (0, 255)  # range of the activations


@dataclass(frozen=True, kw_only=True)
class _Rounded:
    """The rounded float64 weight of a layer, its bias, and its scales [O]; no scales if `convert` rounds the weight itself."""

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None


def count_layers(prepared: nn.Module) -> int:
    """Return the number of layers that `round_weights` rounds: convolutions and linear layers with a qconfig."""
    return sum(1 for _ in _layers(prepared))


def round_weights(
    prepared: nn.Module,
    batches: Iterable[Tensor],
    *,
    gptq: bool = True,
    bias_correction: bool = True,
    seed: int = 0,
    on_layer: Callable[[], None] = lambda: None,
) -> nn.Module:
    """Return a copy of a calibrated model with rounded weights and corrected biases.

    The qconfig of each rounded layer has an observer with the scales of the rounding, with which `convert` reproduces exactly
    the same integers.

    Args:
        prepared: the result of `load_fuse_prepare`, after `calibrate`.
        batches: normalized images, float32 [N, 3, H, W] each. Of large images, only the first ones are used.
        gptq: whether to round with GPTQ; otherwise weights stay as they are, and `convert` rounds them to nearest.
        bias_correction: whether to correct the biases.
        seed: of the random choice of positions in GPTQ.
        on_layer: called after each layer, for progress.
    """
    model = copy.deepcopy(prepared)
    images = torch.cat(list(batches))
    images = images[: max(MAX_PIXELS // images[0, 0].numel(), 1)].double()
    generator = torch.Generator().manual_seed(seed)
    done: dict[Layer, _Rounded] = {}

    def run(layer: Layer, x: Tensor) -> Tensor:
        if layer in done:  # the layer is executed more than once
            return _products(layer, x, done[layer].weight, done[layer].bias)
        weight, scale = round_for_inputs(layer, x, generator) if gptq else (_nearest(layer), None)
        outputs, bias = _products(layer, x, weight, layer.bias), layer.bias
        if layer in float_means and bias is not None:
            shift = float_means[layer] - _channel_means(outputs)
            bias = bias + shift
            outputs += shift.reshape(-1, *[1] * (outputs.ndim - 2))
        done[layer] = _Rounded(weight=weight, bias=bias, scale=scale)
        on_layer()
        return outputs

    with double_precision(model), torch.no_grad():
        float_means = _float_means(model, images) if bias_correction else {}
        with replaced_forwards(_forwards(model, run, _fake_quantized)):
            model(images)
    for layer, rounded in done.items():
        if layer.bias is not None and rounded.bias is not None:
            layer.bias.data = rounded.bias.float()
        if rounded.scale is not None:
            layer.weight.data = rounded.weight.float()
            activation, scale = cast("QConfig", layer.qconfig).activation, rounded.scale.float()
            layer.qconfig = QConfig(activation=activation, weight=_FixedScaleObserver.with_args(scale=scale))  # type: ignore[assignment]
    return model


class _FixedScaleObserver(PerChannelMinMaxObserver):
    """An observer of int8 weights that returns the given scales [O] and zero points of 0."""

    def __init__(self, *, scale: Tensor, **kwargs: Any) -> None:
        super().__init__(ch_axis=0, dtype=torch.qint8, qscheme=torch.per_channel_symmetric, **kwargs)
        self.scale = scale

    def calculate_qparams(self, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.scale, torch.zeros(len(self.scale), dtype=torch.int64)


@contextmanager
def replaced_forwards(replacements: Mapping[nn.Module, Callable[..., Tensor]]) -> Iterator[None]:
    """Replace the `forward` of these module instances while the block runs."""
    for module, forward in replacements.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in replacements:
            del module.forward


def _layers(model: nn.Module) -> Iterator[Layer]:
    """Yield the layers that will be INT8: convolutions and linear layers with a qconfig."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and getattr(module, "qconfig", None) is not None:
            yield module


def _forwards(
    prepared: nn.Module, run: Callable[[Layer, Tensor], Tensor], observe: Callable[[ObserverBase, Tensor], Tensor]
) -> dict[nn.Module, Callable[..., Tensor]]:
    """Return the replacements with which layers execute `run`, and observers `observe` instead of recording ranges."""
    observers = [module for module in prepared.modules() if isinstance(module, ObserverBase)]
    return {observer: partial(observe, observer) for observer in observers} | {
        layer: partial(run, layer) for layer in _layers(prepared)
    }


def _float_means(prepared: nn.Module, images: Tensor) -> dict[Layer, Tensor]:
    """Return the means of each layer's output channels [O] in the float network, at the first execution of the layer."""
    means: dict[Layer, Tensor] = {}
    for batch in images.split(CHUNK):
        seen: set[Layer] = set()

        def run(layer: Layer, x: Tensor, *, seen: set[Layer] = seen, share: float = len(batch) / len(images)) -> Tensor:
            outputs = product(layer, x, layer.weight, layer.bias)
            if layer not in seen:
                means[layer] = means.get(layer, torch.zeros(())) + share * _channel_means(outputs)
                seen.add(layer)
            return outputs

        with replaced_forwards(_forwards(prepared, run, lambda _observer, x: x)):
            prepared(batch)
    return means


def _channel_means(outputs: Tensor) -> Tensor:
    """Return the means [O] of outputs [N, O, H, W] or [N, O]."""
    return outputs.mean((0, 2, 3)) if outputs.ndim == 4 else outputs.mean(0)


def _fake_quantized(observer: Any, x: Tensor) -> Tensor:
    scale, zero_point = copy.deepcopy(observer).float().calculate_qparams()  # float32, as in `convert`
    return torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero_point), *QUINT8)


def _products(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `product` for all images, computed in chunks because a float64 convolution needs memory for im2col."""
    first = product(layer, x[:CHUNK], weight, bias)
    outputs = first.new_empty(len(x), *first.shape[1:])
    outputs[:CHUNK] = first
    for start in range(CHUNK, len(x), CHUNK):
        outputs[start : start + CHUNK] = product(layer, x[start : start + CHUNK], weight, bias)
    return outputs


def _nearest(layer: Layer) -> Tensor:
    """Return the weight as `convert` will round it, float64."""
    observer: Any = cast("QConfig", layer.qconfig).weight()
    weight = layer.weight.detach().float()
    observer(weight)
    scale, zero_point = observer.calculate_qparams()
    limits = torch.iinfo(torch.int8)
    if len(scale) == 1:
        return torch.fake_quantize_per_tensor_affine(weight, scale, zero_point.int(), limits.min, limits.max).double()
    scale = scale.float()  # the observer was created with float64 as the default dtype, which the operator does not accept
    return torch.fake_quantize_per_channel_affine(weight, scale, zero_point.int(), 0, limits.min, limits.max).double()


def product(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the result of a convolution or linear layer for another weight and bias than its own.

    Args:
        layer: float or quantized; a convolution's stride, padding, dilation and groups are used.
        x: float [N, C, H, W] or [N, C].
        weight: float [O, C / groups, kH, kW] or [O, C].
        bias: float [O].
    """
    if weight.ndim == 2:
        return nn.functional.linear(x, weight, bias)
    return nn.functional.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
