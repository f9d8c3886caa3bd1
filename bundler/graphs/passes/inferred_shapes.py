"""InferShapesPass: the values between the nodes get types and shapes, in memory."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from bundler.graphs.serialization import to_proto

__all__ = ["InferShapesPass"]

_SMALL = 1024  # bytes; shapes follow from the values of such tensors (of a Reshape, for one), and never from weights


class InferShapesPass(ir.passes.InPlacePass):
    """Infer with `onnx.shape_inference` what the exporter does not write.

    onnx-ir's own ShapeInferencePass does the same, but also changes the order of the initializers and the shape of the graph's
    outputs, and with them the file.

    Ensures: every value that ONNX can infer has a type and a shape; the graph's inputs, outputs and initializers are unchanged.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        proto = to_proto(model)
        for tensor in proto.graph.initializer:
            if len(tensor.raw_data) > _SMALL:
                tensor.ClearField("raw_data")
        inferred = {info.name: info for info in onnx.shape_inference.infer_shapes(proto).graph.value_info}
        values = [value for node in model.graph for value in node.outputs if not value.is_graph_output()]
        found = [value for value in values if value.name in inferred]
        for value in found:
            ir.serde.deserialize_value_info_proto(inferred[value.name], value)
        return ir.passes.PassResult(model, modified=bool(found))
