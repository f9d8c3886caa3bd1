"""ONNX Runtime prints a warning for each initializer that nothing reads: files hold none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from bundler.graphs.instrumentation import instrument
from bundler.graphs.known_answer import write_known_answer
from bundler.graphs.passes.unused import RemoveUnusedPass
from bundler.graphs.serialization import to_proto

Exported = Any  # of conftest.py


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


def model_of(graph: onnx.GraphProto) -> ir.Model:
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8))


def test_onnx_runtime_loads_exported_files_without_a_warning(int8: Exported, fp32: Exported, tmp_path: Path) -> None:
    instrumented, known = tmp_path / "instrumented.onnx", tmp_path / "known-answer.onnx"
    instrument(to_proto(int8.graph.model), instrumented)
    write_known_answer(known, opset=13)
    paths = (int8.graph.path, fp32.graph.path, instrumented, known)
    assert [unread(onnx.load(path).graph) for path in paths] == [set()] * 4
    assert loaded(*paths) == ""


def test_inputs_of_unused_nodes_are_unused_too() -> None:
    nodes = [
        helper.make_node("Add", ["x", "read"], ["y"]),
        helper.make_node("Add", ["x", "unread"], ["a"]),
        helper.make_node("Clip", ["a", "", "also_unread"], ["b"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    model = model_of(helper.make_graph(nodes, "g", [x], [y], [constant(name) for name in ("read", "unread", "also_unread")]))
    assert RemoveUnusedPass()(model).modified
    assert [node.outputs[0].name for node in model.graph] == ["y"]
    assert list(model.graph.initializers) == ["read"]
    assert not RemoveUnusedPass()(model).modified


def test_subgraphs_keep_what_they_read_and_lose_what_they_do_not(tmp_path: Path) -> None:
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])

    def branch(reads: str) -> onnx.GraphProto:
        nodes = [helper.make_node("Add", ["x", reads], ["z"]), helper.make_node("Neg", ["inner_unread"], ["nobody"])]
        return helper.make_graph(nodes, "branch", [], [out], [constant("inner"), constant("inner_unread")])

    choice = helper.make_node("If", ["condition"], ["y"], then_branch=branch("inner"), else_branch=branch("outer"))
    condition = helper.make_tensor_value_info("condition", TensorProto.BOOL, [])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    model = model_of(helper.make_graph([choice], "g", [condition, x], [y], [constant("outer"), constant("outer_unread")]))
    RemoveUnusedPass()(model)
    assert list(model.graph.initializers) == ["outer"]
    then, other = (model.graph[0].attributes[name].as_graph() for name in ("then_branch", "else_branch"))
    assert list(then.initializers) == ["inner"]
    assert list(other.initializers) == []
    assert len(then) == len(other) == 1
    proto = to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, tmp_path / "choice.onnx")
    assert loaded(tmp_path / "choice.onnx") == ""


def test_what_it_ensures_is_checked() -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    model = model_of(helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [x], [y], [constant("unread")]))
    with pytest.raises(ir.passes.PostconditionError, match="nothing reads unread"):
        RemoveUnusedPass().ensures(model)
