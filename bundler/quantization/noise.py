"""LayerNoise: how far each layer's weights and outputs are from the float network's, in the order of execution (issue 4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import QFunctional

from bundler.device.numerics import decibels
from bundler.quantization.output_observers import output_layers
from bundler.quantization.precision import double_precision
from bundler.quantization.weight_rounding import product

__all__ = ["LayerNoise", "measure_layers"]

_RESULT = ".activation_post_process"  # through it goes what a FloatFunctional computes


@dataclass(frozen=True, kw_only=True)
class LayerNoise:
    """Signal to quantization noise of one layer in dB; of its weights too where it has any, inf where nothing was lost.

    Outputs carry the noise of all layers before: where the figure falls from one layer to the next, it hurts.
    """

    name: str
    weight_sqnr_db: float | None
    output_sqnr_db: float


class _Power:
    """Sums of squares, of a signal and of what differs from it."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(self, reference: Tensor, other: Tensor) -> None:
        self.signal += float(reference.double().square().sum())
        self.noise += float((reference.double() - other.double()).square().sum())

    @property
    def sqnr_db(self) -> float:
        return decibels(self.signal, self.noise)


def measure_layers(reference: nn.Module, converted: nn.Module, batches: Iterable[Tensor]) -> tuple[LayerNoise, ...]:
    """Run both on the same pictures and compare what each layer gives; the engine that converted must be set.

    The reference computes in float64.
    Of the layers that give the outputs, the sums are compared, as in the exported graph (`graphs.passes.integer_outputs`).

    Args:
        reference: the prepared network with its float weights, before they were rounded; its observers learn nothing here.
        converted: the INT8 network that was made of it.
        batches: float32 [N, 3, H, W] each, normalised.
    """
    originals = dict(reference.named_modules())
    layers = {
        name + _RESULT if isinstance(module, QFunctional) else name: module
        for name, module in converted.named_modules()
        if hasattr(module, "scale") and name in originals
    }
    expected: dict[str, list[Tensor]] = {}
    outputs: dict[str, list[Tensor]] = {}
    powers: dict[str, _Power] = {}
    summed = output_layers(converted)
    hooks = [
        converted.get_submodule(name).register_forward_hook(_keep(name, outputs, summed=layers[name] in summed))
        for name in layers
    ]
    hooks += [originals[name].register_forward_hook(_keep(name, expected)) for name in layers]
    try:
        for batch in batches:
            expected.clear()
            outputs.clear()
            with double_precision(reference), torch.inference_mode(), _not_observing(reference):
                reference(batch.double())
            with torch.inference_mode():
                converted(batch)
            for name, results in outputs.items():
                for before, after in zip(expected.get(name, ()), results, strict=False):
                    powers.setdefault(name, _Power()).add(before, after)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(
        LayerNoise(
            name=name.removesuffix(_RESULT),
            weight_sqnr_db=_weight_sqnr_db(originals[name], layers[name]),
            output_sqnr_db=power.sqnr_db,
        )
        for name, power in powers.items()
    )


@contextmanager
def _not_observing(model: nn.Module) -> Iterator[None]:
    """Let observers learn nothing; those of activations that clip do clip, as the INT8 layer does."""
    observers: list[Any] = [module for module in model.modules() if hasattr(module, "calculate_qparams")]
    for observer in observers:
        bounds = getattr(observer, "bounds", None)
        observer.forward = partial(torch.clamp, min=bounds[0], max=bounds[1]) if bounds else _same
    try:
        yield
    finally:
        for observer in observers:
            del observer.forward


def _same(x: Tensor) -> Tensor:
    return x


def _keep(name: str, store: dict[str, list[Tensor]], *, summed: bool = False) -> Any:
    """Return a hook that keeps what a module gives, in float; `summed` is what it is before it is rounded to 8 bits."""

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            store.setdefault(name, []).append(_sums(module, inputs[0]) if summed else output.dequantize())

    return keep


def _sums(layer: Any, x: Tensor) -> Tensor:
    bias = layer.bias()
    weight, double_bias = layer.weight().dequantize().double(), None if bias is None else bias.double()
    return product(layer, x.dequantize().double(), weight, double_bias)


def _weight_sqnr_db(original: nn.Module, layer: Any) -> float | None:
    if not callable(getattr(layer, "weight", None)):  # INT8 layers unpack theirs; what has none, computes without
        return None
    fused: Any = original[0] if isinstance(original, nn.Sequential) else original
    power = _Power()
    power.add(fused.weight.detach(), layer.weight().dequantize())
    return power.sqnr_db
