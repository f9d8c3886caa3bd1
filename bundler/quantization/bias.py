"""Biases corrected for what the rounding of weights shifts on average (Nagel et al. 2019, arXiv:1906.04721, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["correct_biases"]


def correct_biases(reference: nn.Module, converted: nn.Module, batches: Iterable[Tensor]) -> int:
    """Add to each bias what its layer's rounded weights lack of the float ones' mean, in place; return how many were corrected.

    Args:
        reference: the prepared network with its float weights, before they were rounded.
        converted: the INT8 network that was made of it; its engine must be set.
        batches: float32 [N, 3, H, W] each, normalised: on which the inputs' means are taken, of the float network.
    """
    originals = dict(reference.named_modules())
    layers: dict[str, Any] = {
        name: module
        for name, module in converted.named_modules()
        if name in originals and callable(getattr(module, "set_weight_bias", None))
    }
    means = _input_means({name: originals[name] for name in layers}, reference, batches)
    corrected = 0
    for name, layer in layers.items():
        if name not in means or layer.bias() is None:
            continue
        original: Any = originals[name]
        fused: Any = original[0] if isinstance(original, nn.Sequential) else original
        lost = fused.weight.detach() - layer.weight().dequantize()
        summed = lost.flatten(2).sum(2) if lost.ndim == 4 else lost  # [outputs, inputs of a group]
        groups = getattr(layer, "groups", 1)
        inputs = means[name].reshape(groups, -1)
        shift = torch.einsum("goi,gi->go", summed.reshape(groups, -1, summed.shape[1]), inputs).flatten()
        layer.set_weight_bias(layer.weight(), layer.bias().detach() + shift)
        corrected += 1
    return corrected


def _input_means(layers: dict[str, nn.Module], model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return each layer's mean input for each channel, float32 [C]."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Callable[..., None]:
        def add(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].transpose(0, 1).flatten(1)
            sums[name] = sums.get(name, torch.zeros(len(x))) + x.sum(1)
            counts[name] = counts.get(name, 0) + x.shape[1]

        return add

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / counts[name] for name, total in sums.items()}
