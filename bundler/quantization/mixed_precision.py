"""Mixed precision: the blocks of an INT8 network that can be computed in float, and the network with some of them in float."""

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

# A single layer between DequantizeLinear and QuantizeLinear would not stay in float: ONNX Runtime fuses it to an INT8 operator.
MIN_LAYERS = 2
MAX_LAYERS = 6  # per block; inverted residuals of MobileNetV3 and EfficientNet have 5
MAX_SHARE = 1 / 7  # of all layers, per block; the basic blocks of ResNet18 have 3 of 21


@dataclass(frozen=True, kw_only=True)
class FloatBlock:
    """A module of an INT8 network whose inputs and single output are quantized tensors.

    Args:
        name: of the module.
        layers: number of its convolutions and linear layers.
        scale: of its output.
        zero_point: of its output.
    """

    name: str
    layers: int
    scale: float
    zero_point: int


class _FloatModule(nn.Module):
    """A float module that dequantizes its inputs and quantizes its output."""

    def __init__(self, block: nn.Module, described: FloatBlock) -> None:
        super().__init__()
        self.block = block
        self.quantize = Quantize(described.scale, described.zero_point, torch.quint8)

    def forward(self, *inputs: Any) -> Tensor:
        floats = tree_map(lambda x: x.dequantize() if isinstance(x, Tensor) else x, inputs)
        quantized: Tensor = self.quantize(self.block(*floats))
        return quantized


def find_float_blocks(converted: nn.Module, sample: Tensor) -> tuple[FloatBlock, ...]:
    """Return the blocks that can be computed in float, in order of execution.

    These are the outermost modules of MIN_LAYERS to MAX_LAYERS layers that are executed once, with quantized inputs and one
    quantized output.

    Args:
        converted: an INT8 network; call this inside `quantized_engine`.
        sample: normalized images, float32 [N, 3, H, W].
    """
    layers = {name: _layers(module) for name, module in converted.named_modules()}
    found: dict[str, FloatBlock | None] = {}

    def record(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            tensors = [item for item in tree_leaves(inputs) if isinstance(item, Tensor)]
            if name in found or not isinstance(output, Tensor) or not all(item.is_quantized for item in (*tensors, output)):
                found[name] = None  # executed twice, or with a float input or output: it cannot be replaced
                return
            described = FloatBlock(name=name, layers=layers[name], scale=output.q_scale(), zero_point=output.q_zero_point())
            found[name] = described

        return hook

    most = max(min(MAX_LAYERS, int(layers[""] * MAX_SHARE)), MIN_LAYERS)
    small = [name for name, count in layers.items() if MIN_LAYERS <= count <= most]
    hooks = [converted.get_submodule(name).register_forward_hook(record(name)) for name in small]
    try:
        with torch.inference_mode():
            converted(sample)
    finally:
        for hook in hooks:
            hook.remove()
    blocks = {name: block for name, block in found.items() if block is not None}
    return tuple(block for name, block in blocks.items() if not any(name.startswith(f"{other}.") for other in blocks))


def with_float_blocks(converted: nn.Module, float_model: nn.Module, blocks: Sequence[FloatBlock]) -> nn.Module:
    """Return a copy of the INT8 network with these blocks in float.

    Args:
        converted: an INT8 network; call this inside `quantized_engine`.
        float_model: the float network with the weights that were quantized, not fused.
        blocks: of `find_float_blocks`.
    """
    fused: Any = copy.deepcopy(float_model).eval()
    fused.fuse_model(is_qat=False)
    mixed = copy.deepcopy(converted)
    for block in blocks:
        parent, _, child = block.name.rpartition(".")
        setattr(mixed.get_submodule(parent), child, _FloatModule(fused.get_submodule(block.name), block))
    return mixed


def _layers(module: nn.Module) -> int:
    """Return the number of INT8 convolutions and linear layers, without the depthwise convolutions made from BatchNorms."""
    products = (child for child in module.modules() if isinstance(child, QuantizedConv2d | QuantizedLinear))
    return sum(not isinstance(child, QuantizedBatchNormReLU) for child in products)
