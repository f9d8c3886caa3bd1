"""Checks, by the weights of an exported graph, that no sum of two products exceeds 16 bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bundler.graphs.qdq import constant, dequantized_by

__all__ = ["SaturationCheck", "check_saturation"]

# 255, the largest activation, times the sum of two weights; vpmaddubsw keeps -32,768 to 32,767.
_LEAST, _LARGEST = -(2**15 // 255), (2**15 - 1) // 255
_PRODUCTS = ("Conv", "ConvInteger", "Gemm", "MatMul")


@dataclass(frozen=True, kw_only=True)
class SaturationCheck:
    """One convolution or matrix product: the extreme sums of two neighbouring weights, and how many channels exceed int16.

    A depthwise convolution adds its products in 32 bits on every CPU; its products are not `paired`.
    """

    operator: str
    paired: bool
    smallest_sum: int
    largest_sum: int
    saturating_channels: int


def check_saturation(model: ir.Model) -> tuple[SaturationCheck, ...]:
    """Return a check of each convolution and matrix product of an INT8 graph that has int8 weights.

    CPUs with AVX2 and without VNNI add products of uint8 and int8 in pairs, with saturation to 16 bits. ONNX Runtime's packing
    decides which: the rows of im2col hold the channels of one position after those of another, and are paired from an even
    index on. Here every two neighbours count, whatever their index. (Measured on Haswell with ONNX Runtime 1.32: even pairs
    saturate, odd ones and depthwise convolutions do not, SSE4.2 never does.)
    """
    checks = []
    for node in model.graph:
        if node.op_type in _PRODUCTS:
            dequantize = dequantized_by(node.inputs[1])
            weight = dequantize.inputs[0] if dequantize is not None else node.inputs[1]
            quantized = dequantize is not None or node.op_type == "ConvInteger"
            if quantized and weight is not None and weight.const_value is not None:
                checks.append(_check(node, constant(weight)))
    return tuple(checks)


def _check(node: ir.Node, weight: NDArray[np.int8]) -> SaturationCheck:
    convolution = node.op_type in ("Conv", "ConvInteger")
    depthwise = convolution and weight.shape[1] == 1 and node.attributes.get_int("group", 1) == len(weight)
    if convolution:
        rows = weight.transpose(0, *range(2, weight.ndim), 1).reshape(len(weight), -1)
    else:
        rows = weight if node.attributes.get_int("transB", 0) else weight.T
    wide = rows.astype(np.int16)
    sums = wide[:, :-1] + wide[:, 1:] if wide.shape[1] > 1 else wide
    exceeding = (sums.max(1) > _LARGEST) | (sums.min(1) < _LEAST)
    return SaturationCheck(
        operator=str(node.name),
        paired=not depthwise,
        smallest_sum=int(sums.min()),
        largest_sum=int(sums.max()),
        saturating_channels=0 if depthwise else int(exceeding.sum()),
    )
