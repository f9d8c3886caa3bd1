"""LayerSqnr: the SQNR of each layer's weights and outputs against the float network, in order of execution."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import QFunctional

from bundler.device.numerics import decibels
from bundler.quantization.eager import output_layers
from bundler.quantization.precision import double_precision
from bundler.quantization.weight_rounding import product, replaced_forwards

__all__ = ["LayerSqnr", "measure_layers"]

_OBSERVER = ".activation_post_process"  # of a FloatFunctional, whose own `forward` is not called


@dataclass(frozen=True, kw_only=True)
class LayerSqnr:
    """Signal-to-quantization-noise ratios of one layer in dB.

    Args:
        name: of the module.
        weight_sqnr_db: None for a layer without weights; inf if quantization changed none.
        output_sqnr_db: inf if the outputs are equal. It includes the noise of all preceding layers: a layer adds noise if its
            value is lower than that of the layer before it.
    """

    name: str
    weight_sqnr_db: float | None
    output_sqnr_db: float


class _Power:
    """Sums of squares of a signal and of its difference to another."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(self, reference: Tensor, other: Tensor) -> None:
        self.signal += float(reference.double().square().sum())
        self.noise += float((reference.double() - other.double()).square().sum())

    @property
    def sqnr_db(self) -> float:
        return decibels(self.signal, self.noise)


def measure_layers(reference: nn.Module, converted: nn.Module, batches: Iterable[Tensor]) -> tuple[LayerSqnr, ...]:
    """Run both networks on the same images and compare the outputs of each layer.

    The reference is computed in float64. The layers that compute the network's outputs are compared before their results are
    rounded to 8 bits, as in the exported graph (`bundler.graphs.passes.logits_rounding`).

    Args:
        reference: the prepared network with its float weights, before `round_weights`; its observers record nothing here.
        converted: the INT8 network made from it; call this inside `quantized_engine`.
        batches: normalized images, float32 [N, 3, H, W] each.
    """
    originals = dict(reference.named_modules())
    layers = {
        name + _OBSERVER if isinstance(module, QFunctional) else name: module
        for name, module in converted.named_modules()
        if hasattr(module, "scale") and name in originals
    }
    expected: dict[str, list[Tensor]] = {}
    outputs: dict[str, list[Tensor]] = {}
    powers: dict[str, _Power] = {}
    unrounded = output_layers(converted)
    hooks = [
        converted.get_submodule(name).register_forward_hook(_record(name, outputs, unrounded=layers[name] in unrounded))
        for name in layers
    ]
    hooks += [originals[name].register_forward_hook(_record(name, expected)) for name in layers]
    try:
        for batch in batches:
            expected.clear()
            outputs.clear()
            with double_precision(reference), torch.inference_mode(), replaced_forwards(_disabled_observers(reference)):
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
        LayerSqnr(
            name=name.removesuffix(_OBSERVER),
            weight_sqnr_db=_weight_sqnr_db(originals[name], layers[name]),
            output_sqnr_db=power.sqnr_db,
        )
        for name, power in powers.items()
    )


def _disabled_observers(model: nn.Module) -> dict[nn.Module, Callable[..., Tensor]]:
    """Return replacements with which observers record nothing; those before saturating activations clamp, as INT8 does."""
    forwards: dict[nn.Module, Callable[..., Tensor]] = {}
    for module in model.modules():
        if hasattr(module, "calculate_qparams"):
            bounds: Any = getattr(module, "bounds", None)
            forwards[module] = partial(torch.clamp, min=bounds[0], max=bounds[1]) if bounds else _identity
    return forwards


def _identity(x: Tensor) -> Tensor:
    return x


def _record(name: str, store: dict[str, list[Tensor]], *, unrounded: bool = False) -> Any:
    """Return a forward hook that stores the result of a module, dequantized or, if `unrounded`, before its quantization."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            store.setdefault(name, []).append(_unrounded(module, inputs[0]) if unrounded else output.dequantize())

    return hook


def _unrounded(layer: Any, x: Tensor) -> Tensor:
    bias = layer.bias()
    weight, double_bias = layer.weight().dequantize().double(), None if bias is None else bias.double()
    return product(layer, x.dequantize().double(), weight, double_bias)


def _weight_sqnr_db(original: nn.Module, layer: Any) -> float | None:
    if not callable(getattr(layer, "weight", None)):  # quantized layers with weights have a method that unpacks them
        return None
    fused: Any = original[0] if isinstance(original, nn.Sequential) else original
    power = _Power()
    power.add(fused.weight.detach(), layer.weight().dequantize())
    return power.sqnr_db
