from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir

from bundler.graphs.passes.inferred_shapes import InferShapesPass
from bundler.graphs.serialization import load_graph, to_proto

Exported = Any  # of conftest.py


def test_every_value_gets_a_type_and_the_file_stays_as_it_was(fp32: Exported, int8: Exported) -> None:
    for exported in (fp32, int8):
        model = load_graph(exported.graph.path)
        assert InferShapesPass()(model).modified
        values = [value for node in model.graph for value in node.outputs]
        assert [value.name for value in values if value.dtype is None or value.shape is None] == []
        assert to_proto(model) == onnx.load(exported.graph.path)
        pool = next(node for node in model.graph if node.op_type == "GlobalAveragePool")
        assert pool.inputs[0] is not None
        assert pool.inputs[0].shape == ir.Shape(["batch", 1280, 2, 2])
