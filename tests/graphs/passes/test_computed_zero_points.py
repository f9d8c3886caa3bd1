from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bundler.graphs.passes.computed_zero_points import RemoveComputedZeroPointsPass


def bias(value: int) -> ir.Model:
    """Dequantize an int32 bias with the zero point that the TorchScript exporter has the graph compute."""
    fill = numpy_helper.from_array(np.array([value], np.int64))
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["filled"], name="fill", value=fill),
        helper.make_node("Cast", ["filled"], ["zero"], name="cast", to=TensorProto.INT32),
        helper.make_node("DequantizeLinear", ["bias", "scale", "zero"], ["y"], name="dequantize", axis=0),
    ]
    constants: dict[str, NDArray[Any]] = {
        "shape": np.array([1], np.int64),
        "bias": np.arange(4, dtype=np.int32),
        "scale": np.full(4, 0.5, np.float32),
    }
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    return ir.from_proto(helper.make_model(helper.make_graph(nodes, "g", [], [y], tensors)))


def test_a_zero_point_that_is_computed_as_0_is_removed() -> None:
    model = bias(0)
    assert RemoveComputedZeroPointsPass()(model).modified
    dequantize = model.graph.node("dequantize")
    assert [value.name for value in dequantize.inputs if value] == ["bias", "scale"]
    assert not RemoveComputedZeroPointsPass()(model).modified


def test_another_zero_point_stays() -> None:
    model = bias(3)
    assert not RemoveComputedZeroPointsPass()(model).modified
    assert len(model.graph.node("dequantize").inputs) == 3


def test_what_it_ensures_is_checked() -> None:
    with pytest.raises(ir.passes.PostconditionError, match="zero point of dequantize is computed"):
        RemoveComputedZeroPointsPass().ensures(bias(0))
