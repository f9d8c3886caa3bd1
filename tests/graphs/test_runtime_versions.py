"""The oldest ONNX Runtime that executes a graph, by the table of measurements."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from bundler.graphs.runtime_versions import OLDEST, runtime_minimum


def graph(operator: str, weights: type[np.generic]) -> ir.Model:
    nodes = [helper.make_node("Identity", ["x"], ["same"]), helper.make_node(operator, ["same", "w"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 1, 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, None)
    constant = numpy_helper.from_array(np.ones((1, 1, 2, 2), weights), "w")
    return ir.from_proto(helper.make_model(helper.make_graph(nodes, "g", [x], [y], [constant])))


@pytest.mark.parametrize(
    ("operator", "weights", "onnxruntime", "python"),
    [
        ("ConvInteger", np.int8, "1.24", "3.11"),
        ("ConvInteger", np.uint8, OLDEST.onnxruntime, OLDEST.python),
        ("MatMulInteger", np.int8, OLDEST.onnxruntime, OLDEST.python),
    ],
)
def test_the_newest_operator_decides(operator: str, weights: type[np.generic], onnxruntime: str, python: str) -> None:
    found = runtime_minimum(graph(operator, weights))
    assert (found.onnxruntime, found.python) == (onnxruntime, python)


def test_versions_are_compared_as_numbers() -> None:
    needed = [runtime_minimum(graph("ConvInteger", np.int8)), OLDEST]
    assert max(needed).onnxruntime == "1.24"
    assert max(needed[::-1]).onnxruntime == "1.24"
