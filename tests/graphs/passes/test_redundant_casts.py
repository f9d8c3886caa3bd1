from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from bundler.graphs.passes.inferred_shapes import InferShapesPass
from bundler.graphs.passes.redundant_casts import RemoveRedundantCastsPass


def casts(*types: int, infer: bool = True) -> ir.Model:
    """Cast uint8 to one type after the other, and the last to int32."""
    names = ["x", *(f"v{index}" for index in range(len(types)))]
    nodes = [
        helper.make_node("Cast", [names[index]], [names[index + 1]], name=f"cast{index}", to=to)
        for index, to in enumerate(types)
    ]
    nodes.append(helper.make_node("Cast", [names[-1]], ["y"], name="last", to=TensorProto.INT32))
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [2])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [2])
    model = ir.from_proto(helper.make_model(helper.make_graph(nodes, "g", [x], [y])))
    return InferShapesPass()(model).model if infer else model


@pytest.mark.parametrize(
    ("types", "left"),
    [
        ((TensorProto.UINT8,), ["last"]),
        ((TensorProto.UINT8, TensorProto.UINT8), ["last"]),
        ((TensorProto.INT8,), ["cast0", "last"]),
        ((TensorProto.INT8, TensorProto.INT8, TensorProto.UINT8), ["cast0", "cast2", "last"]),
    ],
)
def test_casts_to_the_same_type_are_removed_and_others_stay(types: tuple[int, ...], left: list[str]) -> None:
    model = casts(*types)
    assert RemoveRedundantCastsPass()(model).modified == (len(left) < len(types) + 1)
    assert [node.name for node in model.graph] == left
    assert model.graph[-1].inputs[0] is (model.graph[-2].outputs[0] if len(left) > 1 else model.graph.inputs[0])


def test_an_output_of_the_graph_keeps_its_cast() -> None:
    model = casts(TensorProto.INT32)
    assert not RemoveRedundantCastsPass()(model).modified


def test_the_types_must_be_known() -> None:
    with pytest.raises(ir.passes.PreconditionError, match="the type of the input of last is not known"):
        RemoveRedundantCastsPass()(casts(TensorProto.UINT8, infer=False))
