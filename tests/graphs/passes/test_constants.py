from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from bundler.graphs.passes.constants import ConstantsToInitializersPass
from bundler.graphs.serialization import to_proto


def model_of(*nodes: NodeProto) -> ir.Model:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    return ir.from_proto(helper.make_model(helper.make_graph(list(nodes), "g", [x], [y])))


def test_constants_of_every_kind_and_size_become_initializers() -> None:
    weight = np.arange(2, dtype=np.float32)
    model = model_of(
        helper.make_node("Constant", [], ["weight"], value=numpy_helper.from_array(weight)),
        helper.make_node("Constant", [], ["number"], value_float=3.0),
        helper.make_node("Add", ["x", "weight"], ["sum"]),
        helper.make_node("Mul", ["sum", "number"], ["y"]),
    )
    assert ConstantsToInitializersPass()(model).modified
    assert [node.op_type for node in model.graph] == ["Add", "Mul"]
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in to_proto(model).graph.initializer}
    assert list(tensors) == ["weight", "number"]
    assert np.array_equal(tensors["weight"], weight)
    assert tensors["number"] == np.float32(3)


def test_a_constant_that_the_graph_computes_is_refused() -> None:
    model = model_of(
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"], name="fill"),
        helper.make_node("Add", ["x", "zeros"], ["y"]),
    )
    with pytest.raises(ir.passes.PostconditionError, match="still computes constants: fill"):
        ConstantsToInitializersPass()(model)
