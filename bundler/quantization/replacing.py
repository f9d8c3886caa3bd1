"""Which operators of a float model get a quantizable form, and what the conversion makes of it."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.ao.quantization.quantization_mappings import DEFAULT_STATIC_QUANT_MODULE_MAPPINGS

from bundler.quantization.activations import (
    QuantizableHardswish,
    QuantizableMish,
    QuantizableSiLU,
    QuantizedHardswish,
    QuantizedMish,
    QuantizedSiLU,
)
from bundler.quantization.batch_norm import QuantizableBatchNormReLU, QuantizedBatchNormReLU
from bundler.quantization.pooling import QuantizableGlobalAverage, QuantizedGlobalAverage

__all__ = ["make_quantizable"]

# Torch's own registry, so that its `convert` finds them wherever it is called, as in the specification's sequences.
DEFAULT_STATIC_QUANT_MODULE_MAPPINGS.update(
    {
        QuantizableBatchNormReLU: QuantizedBatchNormReLU,
        QuantizableGlobalAverage: QuantizedGlobalAverage,
        QuantizableHardswish: QuantizedHardswish,
        QuantizableMish: QuantizedMish,
        QuantizableSiLU: QuantizedSiLU,
    }
)
_QUANTIZABLE: dict[type[nn.Module], Callable[[], nn.Module]] = {
    nn.AdaptiveAvgPool2d: QuantizableGlobalAverage,
    nn.Hardswish: QuantizableHardswish,
    nn.Mish: QuantizableMish,
    nn.SiLU: QuantizableSiLU,
}


def make_quantizable(model: nn.Module) -> None:
    """Replace each SiLU, Hardswish, Mish and global average pooling of a float model by its quantizable form, in place.

    None has parameters, and the float model computes what it did.
    """
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) in _QUANTIZABLE and _is_global(child):
                setattr(parent, name, _QUANTIZABLE[type(child)]())


def _is_global(child: nn.Module) -> bool:
    return not isinstance(child, nn.AdaptiveAvgPool2d) or child.output_size in (1, (1, 1))
