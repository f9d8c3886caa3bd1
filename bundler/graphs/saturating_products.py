"""Proof that no sum of two products leaves 16 bits, from the weights of an exported graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

__all__ = ["SaturationProof", "prove_saturation"]

# 255, the largest activation, times the sum of two weights; vpmaddubsw keeps -32,768 to 32,767.
_LEAST, _LARGEST = -(2**15 // 255), (2**15 - 1) // 255
_PRODUCTS = ("Conv", "ConvInteger", "Gemm", "MatMul")


@dataclass(frozen=True, kw_only=True)
class SaturationProof:
    """One convolution or matrix product: the extremes of two neighbouring weights' sums, and how many channels exceed int16.

    A depthwise convolution adds its products in 32 bits everywhere, so nothing is `paired` there.
    """

    operator: str
    paired: bool
    smallest_sum: int
    largest_sum: int
    saturating_channels: int


def prove_saturation(path: Path) -> tuple[SaturationProof, ...]:
    """Return the proof of each convolution and matrix product of an INT8 graph with weights in int8.

    Processors with AVX2 and without VNNI add products of uint8 and int8 two by two with saturation. Which two follows from
    ONNX Runtime's packing: the rows of im2col hold the channels of one position after the other, and are paired from an even
    one on. Here every two consecutive ones count, whatever the parity (issue 4; measured on Haswell with ONNX Runtime 1.32:
    even pairs saturate, odd ones and depthwise convolutions do not, SSE4.2 never does).
    """
    graph = onnx.load(path).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    integers = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    proofs = []
    for node in graph.node:
        if node.op_type not in _PRODUCTS:
            continue
        weight = constants.get(node.input[1] if node.op_type == "ConvInteger" else integers.get(node.input[1]))
        if weight is not None:
            attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
            proofs.append(_proof(node, numpy_helper.to_array(weight), attributes))
    return tuple(proofs)


def _proof(node: onnx.NodeProto, weight: NDArray[np.int8], attributes: dict[str, int]) -> SaturationProof:
    convolution = node.op_type in ("Conv", "ConvInteger")
    depthwise = convolution and weight.shape[1] == 1 and attributes.get("group", 1) == len(weight)
    if convolution:
        rows = weight.transpose(0, *range(2, weight.ndim), 1).reshape(len(weight), -1)
    else:
        rows = weight if attributes.get("transB", 0) else weight.T
    wide = rows.astype(np.int16)
    sums = wide[:, :-1] + wide[:, 1:] if wide.shape[1] > 1 else wide
    exceeding = (sums.max(1) > _LARGEST) | (sums.min(1) < _LEAST)
    return SaturationProof(
        operator=node.name,
        paired=not depthwise,
        smallest_sum=int(sums.min()),
        largest_sum=int(sums.max()),
        saturating_channels=0 if depthwise else int(exceeding.sum()),
    )
