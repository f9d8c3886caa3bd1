"""Exported files hold nothing that nobody reads: ONNX Runtime warns of each such initializer whenever it loads one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bundler.graphs.instrumentation import write_traced
from bundler.graphs.known_answer import write_known_answer
from bundler.graphs.passes.tidying import remove_unread
from tests.graphs.conftest import Exported


def constant(name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(2, np.float32), name)


def unread(graph: onnx.GraphProto) -> set[str]:
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    made = {tensor.name for tensor in graph.initializer} | {name for node in graph.node for name in node.output}
    return made - read


def loaded(*paths: Path) -> str:
    """Load files in a process of its own, as any program does, and return what ONNX Runtime prints."""
    code = "import onnxruntime as o, sys; [o.InferenceSession(p, providers=['CPUExecutionProvider']) for p in sys.argv[1:]]"
    done = subprocess.run([sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_an_int8_graph_is_loaded_without_a_word(int8: Exported, fp32: Exported, tmp_path: Path) -> None:
    traced, known = tmp_path / "traced.onnx", tmp_path / "known-answer.onnx"
    write_traced(int8.graph.path, traced)
    write_known_answer(known, opset=13)
    paths = (int8.graph.path, fp32.graph.path, traced, known)
    assert [unread(onnx.load(path).graph) for path in paths] == [set()] * 4
    assert loaded(*paths) == ""


def test_what_only_unread_nodes_read_goes_with_them() -> None:
    nodes = [
        helper.make_node("Add", ["x", "read"], ["y"]),
        helper.make_node("Add", ["x", "unread"], ["a"]),
        helper.make_node("Clip", ["a", "", "also_unread"], ["b"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [constant(name) for name in ("read", "unread", "also_unread")])
    remove_unread(graph)
    assert [node.output[0] for node in graph.node] == ["y"]
    assert [tensor.name for tensor in graph.initializer] == ["read"]


def test_subgraphs_keep_what_they_read_and_lose_what_they_do_not(tmp_path: Path) -> None:
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])

    def branch(reads: str) -> onnx.GraphProto:
        nodes = [helper.make_node("Add", ["x", reads], ["z"]), helper.make_node("Neg", ["inner_unread"], ["nobody"])]
        return helper.make_graph(nodes, "branch", [], [out], [constant("inner"), constant("inner_unread")])

    choice = helper.make_node("If", ["condition"], ["y"], then_branch=branch("inner"), else_branch=branch("outer"))
    condition = helper.make_tensor_value_info("condition", TensorProto.BOOL, [])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    graph = helper.make_graph([choice], "g", [condition, x], [y], [constant("outer"), constant("outer_unread")])
    remove_unread(graph)
    assert [tensor.name for tensor in graph.initializer] == ["outer"]
    then, other = (attribute.g for attribute in graph.node[0].attribute)
    if then.node[0].input[1] == "outer":
        then, other = other, then
    assert [tensor.name for tensor in then.initializer] == ["inner"]
    assert [tensor.name for tensor in other.initializer] == []
    assert len(then.node) == len(other.node) == 1
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "choice.onnx")
    assert loaded(tmp_path / "choice.onnx") == ""
