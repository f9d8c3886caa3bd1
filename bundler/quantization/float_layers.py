"""Layers that stay in float: which blocks of an INT8 network could, and the network with some of them (issue 4)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import Conv2d as QuantizedConv2d
from torch.ao.nn.quantized import Linear as QuantizedLinear
from torch.ao.nn.quantized import Quantize
from torch.utils._pytree import tree_leaves, tree_map

from bundler.quantization.batch_norm import QuantizedBatchNormReLU

__all__ = ["FloatBlock", "find_float_blocks", "with_float_blocks"]

# A single layer between a Dequantize and a Quantize would not stay: ONNX Runtime quantizes its weights by itself.
FEWEST_LAYERS = 2
MOST_LAYERS = 6  # in one block: the inverted residuals of MobileNetV3 and EfficientNet have five
MOST_SHARE = 1 / 7  # of all layers, in one block: the basic blocks of ResNet18 have three of 21


@dataclass(frozen=True, kw_only=True)
class FloatBlock:
    """A part of an INT8 network with quantized tensors in and one out; `layers` are its convolutions and matrix products."""

    name: str
    layers: int
    scale: float
    zero_point: int


class _InFloat(nn.Module):
    """A float block between INT8 ones."""

    def __init__(self, block: nn.Module, described: FloatBlock) -> None:
        super().__init__()
        self.block = block
        self.quantize = Quantize(described.scale, described.zero_point, torch.quint8)

    def forward(self, *inputs: Any) -> Tensor:
        floats = tree_map(lambda x: x.dequantize() if isinstance(x, Tensor) else x, inputs)
        quantized: Tensor = self.quantize(self.block(*floats))
        return quantized


def find_float_blocks(converted: nn.Module, sample: Tensor) -> tuple[FloatBlock, ...]:
    """Return the blocks that could stay in float, as they are executed: the largest ones of two to six layers.

    Args:
        converted: an INT8 network; its engine must be set.
        sample: float32 [N, 3, H, W], normalised.
    """
    layers = {name: _layers(module) for name, module in converted.named_modules()}
    found: dict[str, FloatBlock | None] = {}

    def note(name: str) -> Any:
        def look(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            tensors = [item for item in tree_leaves(inputs) if isinstance(item, Tensor)]
            if name in found or not isinstance(output, Tensor) or not all(item.is_quantized for item in (*tensors, output)):
                found[name] = None  # runs twice, or has a float end: it cannot be replaced
                return
            described = FloatBlock(name=name, layers=layers[name], scale=output.q_scale(), zero_point=output.q_zero_point())
            found[name] = described

        return look

    most = max(min(MOST_LAYERS, int(layers[""] * MOST_SHARE)), FEWEST_LAYERS)
    small = [name for name, count in layers.items() if FEWEST_LAYERS <= count <= most]
    hooks = [converted.get_submodule(name).register_forward_hook(note(name)) for name in small]
    try:
        with torch.inference_mode():
            converted(sample)
    finally:
        for hook in hooks:
            hook.remove()
    blocks = {name: block for name, block in found.items() if block is not None}
    return tuple(block for name, block in blocks.items() if not any(name.startswith(f"{other}.") for other in blocks))


def with_float_blocks(converted: nn.Module, float_model: nn.Module, blocks: Sequence[FloatBlock]) -> nn.Module:
    """Return the INT8 network with these blocks in float; the one given stays as it is.

    Args:
        converted: an INT8 network; its engine must be set.
        float_model: what it was made of, with the weights as they were quantized, not fused.
        blocks: of `find_float_blocks`.
    """
    fused: Any = copy.deepcopy(float_model).eval()
    fused.fuse_model(is_qat=False)
    mixed = copy.deepcopy(converted)
    for block in blocks:
        parent, _, child = block.name.rpartition(".")
        setattr(mixed.get_submodule(parent), child, _InFloat(fused.get_submodule(block.name), block))
    return mixed


def _layers(module: nn.Module) -> int:
    """Return the number of INT8 convolutions and matrix products."""
    products = (child for child in module.modules() if isinstance(child, QuantizedConv2d | QuantizedLinear))
    return sum(not isinstance(child, QuantizedBatchNormReLU) for child in products)
