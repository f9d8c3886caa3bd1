"""The layers that give a network's outputs; the exported graph has their 32-bit sums (`graphs.passes.integer_outputs`)."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn
from torch.ao.nn.quantized import Linear as QuantizedLinear
from torch.ao.nn.quantized.modules.utils import WeightedQuantizedModule

__all__ = ["leave_outputs_unrounded", "output_layers"]


@runtime_checkable
class Predicting(Protocol):
    """A detector, which names the convolutions whose maps it decodes."""

    def prediction_layers(self) -> list[nn.Conv2d]: ...


def output_layers(model: nn.Module) -> list[nn.Module]:
    """Return a detector's last convolutions or a classifier's last linear layer, in float, prepared or converted."""
    if isinstance(model, Predicting):
        return [*model.prediction_layers()]
    layers = [item for item in model.modules() if isinstance(item, nn.Conv2d | nn.Linear | WeightedQuantizedModule)]
    return [layer for layer in layers[-1:] if isinstance(layer, nn.Linear | QuantizedLinear)]


def leave_outputs_unrounded(prepared: nn.Module) -> None:
    """Let a network that is trained for INT8 compute its outputs as the exported graph will; their ranges are observed."""
    for layer in output_layers(prepared):
        if hasattr(layer, "activation_post_process"):
            layer.activation_post_process.disable_fake_quant()  # type: ignore[operator, union-attr]
