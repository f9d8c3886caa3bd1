"""Reading of QDQ graphs: the constants of QuantizeLinear and DequantizeLinear nodes, and the operators next to them."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from bundler.graphs.rounding_models import Affine

__all__ = ["affine", "constant", "dequantized_by", "integer_product", "zero_point"]


def constant(value: ir.Value | None) -> NDArray[Any]:
    """Return the array of an initializer.

    Raises:
        ValueError: it is none.
    """
    if value is None or value.const_value is None:
        raise ValueError(f"{value.name if value else 'an input that is not given'} is not a constant")
    array: NDArray[Any] = value.const_value.numpy()
    return array


def zero_point(node: ir.Node) -> int:
    """Return the zero point of a QuantizeLinear or DequantizeLinear with one scale; 0 if it has none."""
    return int(constant(node.inputs[2])) if len(node.inputs) > 2 else 0


def affine(node: ir.Node) -> Affine:
    """Return the scale and zero point of a QuantizeLinear or DequantizeLinear with one scale."""
    return Affine(scale=float(constant(node.inputs[1])), zero_point=zero_point(node))


def dequantized_by(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear that gives a value, or None."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def integer_product(dequantize: ir.Node, op_type: str) -> ir.Node | None:
    """Return the operator of that type in front of a QuantizeLinear and this DequantizeLinear, if its operands are integers."""
    quantize = dequantize.inputs[0].producer() if dequantize.inputs[0] is not None else None
    product = quantize.inputs[0].producer() if quantize is not None and quantize.inputs[0] is not None else None
    if product is None or product.op_type != op_type:
        return None
    return product if all(dequantized_by(value) is not None for value in product.inputs[:2]) else None
