"""RemoveComputedZeroPointsPass: biases are dequantized without a zero point."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["RemoveComputedZeroPointsPass"]


class RemoveComputedZeroPointsPass(ir.passes.InPlacePass):
    """Remove the zero points that the TorchScript exporter has the graph compute.

    Of a bias that is quantized per channel, it writes a zero point of shape [1], from a ConstantOfShape and a Cast. ONNX asks
    for the shape of the scale, or for no zero point, which means 0 (DequantizeLinear-13).

    Ensures: no DequantizeLinear has a zero point that is computed as 0.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = _with_computed_zero(model)
        for node in found:
            node.resize_inputs(2)
        return ir.passes.PassResult(model, modified=bool(found))

    def ensures(self, model: ir.Model) -> None:
        if found := _with_computed_zero(model):
            raise ir.passes.PostconditionError(f"the zero point of {found[0].name} is computed")


def _with_computed_zero(model: ir.Model) -> list[ir.Node]:
    return [
        node
        for node in model.graph
        if node.op_type == "DequantizeLinear" and len(node.inputs) == 3 and _is_computed_zero(node.inputs[2])
    ]


def _is_computed_zero(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    while node is not None and node.op_type == "Cast" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "ConstantOfShape":
        return False
    return "value" not in node.attributes or not node.attributes["value"].as_tensor().numpy().any()
