"""ONNX symbolics of quantized operators that the TorchScript exporter does not support.

They are registered when this package is imported, so that `torch.onnx.export(converted, ..., dynamo=False, opset_version=13)`
works for every model of this project.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.onnx import register_custom_op_symbolic, symbolic_helper  # type: ignore[attr-defined]  # not in torch's __all__

__all__ = ["OPSET"]

OPSET = 13  # the lowest to which torch exports per-channel weights; the symbolics are valid from it on
SIX = 6.0
INT32 = 6  # onnx.TensorProto.INT32


def _relu6(graph: Any, quantized: Any, inplace: Any) -> Any:  # noqa: ARG001  the exporter passes every argument
    """Write ReLU6 as a Clip of the integers, to `round(6 / scale) + zero_point`, as torch's kernel computes it.

    The Clip is between QuantizeLinear and DequantizeLinear, so that ONNX Runtime still fuses the convolution before it.
    """
    tensor, scale, zero_point = symbolic_helper._unpack_quantized_tensor(quantized)[:3]  # noqa: SLF001
    zero_value = int(_constant(zero_point))
    six = min(round(SIX / _constant(scale)) + zero_value, torch.iinfo(torch.uint8).max)
    low = graph.op("Constant", value_t=torch.tensor(zero_value, dtype=torch.uint8))
    high = graph.op("Constant", value_t=torch.tensor(six, dtype=torch.uint8))
    return graph.op("prim::TupleConstruct", graph.op("Clip", tensor, low, high), scale, zero_point)


def _hardsigmoid(graph: Any, x: Any) -> Any:
    """Write a quantized Hardsigmoid, clip((x + 3) / 6, 0, 1), as an addition whose quantization clips.

    ONNX Runtime computes HardSigmoid in float only, but Add in INT8. The sum is quantized with the scale 6/256, and its
    consumers use the scale 1/256, which divides by six. 3, 6/256 and 1/256 are exact in float32.
    """
    if not symbolic_helper._is_tuple_construct(x):  # noqa: SLF001
        return graph.op("HardSigmoid", x, alpha_f=1 / SIX)
    tensor = symbolic_helper.dequantize_helper(graph, x)[0]

    def constant(value: float, dtype: torch.dtype = torch.float32) -> Any:
        return graph.op("Constant", value_t=torch.tensor(value, dtype=dtype))

    zero, one = constant(0, torch.uint8), constant(1, torch.uint8)
    three = graph.op("DequantizeLinear", one, constant(SIX / 2), zero)
    clipped = graph.op("QuantizeLinear", graph.op("Add", tensor, three), constant(SIX / 256), zero)
    return graph.op("prim::TupleConstruct", clipped, constant(1 / 256), zero)


def _mish(graph: Any, quantized: Any, scale: Any, zero_point: Any) -> Any:
    """Write a quantized Mish as a lookup table of 256 values, which gives the same bits on every CPU.

    The lookup is a GatherElements on a flattened tensor, for which ONNX Runtime needs 1 ns per value; Gather needs 8 ns.
    """
    tensor, input_scale, input_zero_point = symbolic_helper._unpack_quantized_tensor(quantized)[:3]  # noqa: SLF001
    inputs = (torch.arange(256) - int(_constant(input_zero_point))) * _constant(input_scale)
    output = torch.quantize_per_tensor(
        torch.nn.functional.mish(inputs), _constant(scale), int(_constant(zero_point)), torch.quint8
    )
    table = graph.op("Constant", value_t=output.int_repr())
    row = graph.op("Constant", value_t=torch.tensor([-1]))
    index = graph.op("Reshape", graph.op("Cast", tensor, to_i=INT32), row)
    found = graph.op("GatherElements", table, index, axis_i=0)
    shaped = graph.op("Reshape", found, graph.op("Shape", tensor))
    return graph.op("prim::TupleConstruct", shaped, scale, zero_point)


def _global_average(graph: Any, quantized: Any, scale: Any, zero_point: Any) -> Any:
    tensor = symbolic_helper.dequantize_helper(graph, quantized)[0]
    zero = graph.op("Constant", value_t=torch.tensor(int(_constant(zero_point)), dtype=torch.uint8))
    given = graph.op("Constant", value_t=torch.tensor(_constant(scale), dtype=torch.float32))
    result = graph.op("QuantizeLinear", graph.op("GlobalAveragePool", tensor), given, zero)
    return graph.op("prim::TupleConstruct", result, given, zero)


def _constant(value: Any) -> float:
    """Return the value of a scale or zero point constant, which the exporter may have wrapped in a Cast."""
    node = value.node()
    while node.kind() == "onnx::Cast":
        node = next(node.inputs()).node()
    return float(symbolic_helper._node_get(node, "value"))  # noqa: SLF001


register_custom_op_symbolic("quantized::relu6", _relu6, OPSET)
register_custom_op_symbolic("aten::hardsigmoid", _hardsigmoid, OPSET)
register_custom_op_symbolic("edge_bundler::global_average", _global_average, OPSET)
register_custom_op_symbolic("edge_bundler::mish", _mish, OPSET)
