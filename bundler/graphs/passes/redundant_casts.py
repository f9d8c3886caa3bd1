"""RemoveRedundantCastsPass: no Cast to the type that its input has."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["RemoveRedundantCastsPass"]


class RemoveRedundantCastsPass(ir.passes.InPlacePass):
    """Remove casts to the same type, as the exporter writes them between a QuantizeLinear and its DequantizeLinear.

    Requires: the inputs of all casts have a type (`InferShapesPass`).
    Ensures: no such Cast is left, unless it gives an output of the graph.
    """

    def requires(self, model: ir.Model) -> None:
        for node in model.graph:
            if node.op_type == "Cast" and (node.inputs[0] is None or node.inputs[0].dtype is None):
                raise ir.passes.PreconditionError(f"the type of the input of {node.name} is not known")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        redundant = _redundant(model)
        for node in redundant:
            value = node.inputs[0]  # of a chain of casts, the one that an earlier turn has put here
            assert value is not None  # noqa: S101  required
            node.outputs[0].replace_all_uses_with(value)
        model.graph.remove(redundant, safe=True)
        return ir.passes.PassResult(model, modified=bool(redundant))

    def ensures(self, model: ir.Model) -> None:
        if left := _redundant(model):
            raise ir.passes.PostconditionError(f"{left[0].name} casts to the type that its input has")


def _redundant(model: ir.Model) -> list[ir.Node]:
    return [
        node for node in model.graph if node.op_type == "Cast" and _keeps_type(node) and not node.outputs[0].is_graph_output()
    ]


def _keeps_type(cast: ir.Node) -> bool:
    value = cast.inputs[0]
    return value is not None and value.dtype == cast.attributes["to"].as_int()
