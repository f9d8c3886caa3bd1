"""How quantized operators that the TorchScript exporter does not know are written in ONNX."""

from __future__ import annotations

from typing import Any

import torch
from torch.onnx import register_custom_op_symbolic, symbolic_helper  # type: ignore[attr-defined]  # not in torch's __all__

__all__ = ["register_symbolics"]

SIX = 6.0


def _relu6(graph: Any, quantized: Any, inplace: Any) -> Any:  # noqa: ARG001  the exporter's own types
    """Clip the integers themselves: `min(q, round(6 / scale) + zero_point)`, as torch's kernel does.

    The Clip stands between QuantizeLinear and DequantizeLinear, so ONNX Runtime still fuses the convolution before it.
    """
    tensor, scale, zero_point = symbolic_helper._unpack_quantized_tensor(quantized)[:3]  # noqa: SLF001
    zero_value = int(_constant(zero_point))
    six = min(round(SIX / _constant(scale)) + zero_value, torch.iinfo(torch.uint8).max)
    low = graph.op("Constant", value_t=torch.tensor(zero_value, dtype=torch.uint8))
    high = graph.op("Constant", value_t=torch.tensor(six, dtype=torch.uint8))
    return graph.op("prim::TupleConstruct", graph.op("Clip", tensor, low, high), scale, zero_point)


def _constant(value: Any) -> float:
    """Return the number behind a scale or zero point, which the exporter may have wrapped in a Cast."""
    node = value.node()
    while node.kind() == "onnx::Cast":
        node = next(node.inputs()).node()
    return float(symbolic_helper._node_get(node, "value"))  # noqa: SLF001


def register_symbolics(opset: int) -> None:
    """Register them with the exporter; doing it again changes nothing."""
    register_custom_op_symbolic("quantized::relu6", _relu6, opset)
