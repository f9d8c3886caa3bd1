"""ONNX files of unknown origin: what they may refer to, and how much memory they may take."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bundler.graphs.foreign_graph import parse_graph


def model(*nodes: onnx.NodeProto, initializers: tuple[TensorProto, ...] = (), domain: str = "") -> onnx.ModelProto:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("Relu", ["image"], ["logits"])], "g", [image], [logits], list(initializers)
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, 13)])


def external(name: str = "weight") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def nested(depth: int) -> onnx.NodeProto:
    node = helper.make_node("Relu", ["image"], ["logits"])
    for _ in range(depth):
        graph = helper.make_graph([node], "g", [], [])
        node = helper.make_node("If", ["image"], ["logits"], then_branch=graph)
    return node


def test_a_self_contained_graph_is_read() -> None:
    weight = numpy_helper.from_array(np.zeros((1000, 1000), np.float32), "weight")
    built = model(initializers=(weight,))
    assert parse_graph(built.SerializeToString()) == built
    assert parse_graph(model(nested(2)).SerializeToString()) == model(nested(2))


@pytest.mark.parametrize(
    ("built", "words"),
    [
        (model(initializers=(external(),)), "'weight' is stored in another file"),
        (model(helper.make_node("Constant", [], ["logits"], value=external())), "is stored in another file"),
        (
            model(helper.make_node("If", ["image"], ["logits"], then_branch=model(initializers=(external(),)).graph)),
            "is stored in another file",
        ),
        (model(domain="evil"), "operators of 'evil'"),
        (model(helper.make_node("Relu", ["image"], ["logits"], domain="com.microsoft")), "operators of 'com.microsoft'"),
        (model(nested(30)), "nested more than 40 deep"),
    ],
    ids=["initializer", "constant", "subgraph", "opset", "node", "deep"],
)
def test_references_to_other_files_and_operators_are_refused(built: onnx.ModelProto, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_graph(built.SerializeToString())


def test_functions_and_sparse_external_tensors_are_refused() -> None:
    built = model()
    built.functions.add(name="f")
    with pytest.raises(ValueError, match="1 functions"):
        parse_graph(built.SerializeToString())
    built = model()
    built.graph.sparse_initializer.add().values.CopyFrom(external("sparse"))
    with pytest.raises(ValueError, match="'sparse' is stored in another file"):
        parse_graph(built.SerializeToString())


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x3a\xff\xff\xff\xff\x0f", b"PK\x03\x04", b"\x0b"])
def test_content_that_is_no_model_is_refused_or_empty(content: bytes) -> None:
    if content:
        with pytest.raises(ValueError, match="not an ONNX model"):
            parse_graph(content)
    else:
        assert not parse_graph(content).graph.node


def test_empty_messages_do_not_become_gigabytes() -> None:
    """Two bytes of an empty node take hundreds in memory."""
    nodes = b"\x0a\x00" * 1_048_576
    with pytest.raises(ValueError, match=r"more than 1,000,000 fields"):
        parse_graph(b"\x3a\x80\x80\x80\x01" + nodes)
