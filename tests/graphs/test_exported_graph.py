"""The validation by `save_graph`: real exports are saved, and refused after one change each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from bundler.errors import ExportError
from bundler.graphs.exported_graph import save_graph
from bundler.graphs.serialization import load_graph, to_proto

Exported = Any  # of conftest.py


def changed(exported: Exported, change: Callable[[onnx.ModelProto], None]) -> ir.Model:
    """Return a copy of an exported graph with one change."""
    proto = onnx.load(exported.graph.path)
    change(proto)
    return ir.from_proto(proto)


def test_a_graph_that_is_read_and_saved_again_is_the_same_file(fp32: Exported, int8: Exported, tmp_path: Path) -> None:
    for exported in (fp32, int8):
        path = tmp_path / "again.onnx"
        graph = save_graph(load_graph(exported.graph.path), path, opset=13, quantized=exported.graph.quantized)
        assert path.read_bytes() == exported.graph.path.read_bytes()
        assert graph.sha256 == exported.graph.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert graph.saturation == exported.graph.saturation


def test_the_quantized_graph_in_memory_is_that_of_the_file(fp32: Exported, int8: Exported) -> None:
    assert to_proto(int8.graph.model) == onnx.load(int8.graph.path)
    assert fp32.graph.model is None


def test_a_graph_that_is_refused_is_not_written(fp32: Exported, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="QuantizeLinear"):
        save_graph(load_graph(fp32.graph.path), tmp_path / "graph.onnx", opset=13, quantized=True)
    assert list(tmp_path.iterdir()) == []


def test_another_opset_is_refused(fp32: Exported, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"operator sets \{'': 13\}, not 14"):
        save_graph(load_graph(fp32.graph.path), tmp_path / "a.onnx", opset=14, quantized=False)

    def twelve(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 12

    with pytest.raises(ExportError, match=r"\{'': 12\}, not 13"):
        save_graph(changed(fp32, twelve), tmp_path / "a.onnx", opset=13, quantized=False)


def test_operators_of_another_domain_are_refused(fp32: Exported, tmp_path: Path) -> None:
    def custom(model: onnx.ModelProto) -> None:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    with pytest.raises(ExportError, match=r"com\.microsoft"):
        save_graph(changed(fp32, custom), tmp_path / "a.onnx", opset=13, quantized=False)


def rename(model: onnx.ModelProto, old: str, new: str) -> None:
    for value in (*model.graph.input, *model.graph.output):
        if value.name == old:
            value.name = new
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


@pytest.mark.parametrize(("kind", "name"), [("input", "image"), ("output", "logits")])
def test_other_names_are_refused(kind: str, name: str, fp32: Exported, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=rf"its {kind} is called \['other'\], not '{name}'"):
        save_graph(changed(fp32, lambda model: rename(model, name, "other")), tmp_path / "a.onnx", opset=13, quantized=False)


@pytest.mark.parametrize("kind", ["input", "output"])
def test_a_fixed_batch_axis_is_refused(kind: str, fp32: Exported, int8: Exported, tmp_path: Path) -> None:
    def fix(model: onnx.ModelProto) -> None:
        getattr(model.graph, kind)[0].type.tensor_type.shape.dim[0].dim_value = 2

    for exported in (fp32, int8):
        with pytest.raises(ExportError, match=f"the batch axis of its {kind} is not dynamic"):
            save_graph(changed(exported, fix), tmp_path / "a.onnx", opset=13, quantized=exported.graph.quantized)


def test_a_float_graph_and_a_quantized_one_are_not_confused(fp32: Exported, int8: Exported, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="0 QuantizeLinear and 0 DequantizeLinear"):
        save_graph(load_graph(fp32.graph.path), tmp_path / "a.onnx", opset=13, quantized=True)
    with pytest.raises(ExportError, match=r"[1-9]\d* QuantizeLinear"):
        save_graph(load_graph(int8.graph.path), tmp_path / "a.onnx", opset=13, quantized=False)


def test_a_graph_that_onnx_refuses_is_refused(fp32: Exported, tmp_path: Path) -> None:
    def lose(model: onnx.ModelProto) -> None:
        del model.graph.initializer[0]

    def misshape(model: onnx.ModelProto) -> None:
        weights = next(tensor for tensor in model.graph.initializer if tensor.name == "classifier.1.weight")
        weights.CopyFrom(numpy_helper.from_array(np.ones((10, 7), np.float32), weights.name))

    for change in (lose, misshape):
        with pytest.raises(ExportError, match=r"onnx\.checker reports"):
            save_graph(changed(fp32, change), tmp_path / "a.onnx", opset=13, quantized=False)


def float_weights(model: onnx.ModelProto, convolution: onnx.NodeProto) -> None:
    """Give a convolution its weights in float instead of dequantized ones."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    producer = next(node for node in model.graph.node if convolution.input[1] in node.output)
    integers, scale = constants[producer.input[0]].astype(np.float32), constants[producer.input[1]]
    weights = integers * scale.reshape(-1, 1, 1, 1)
    model.graph.initializer.append(numpy_helper.from_array(weights.astype(np.float32), "float_weights"))
    convolution.input[1] = "float_weights"


@pytest.mark.parametrize("index", [0, 30])
def test_a_convolution_left_in_float_is_refused(index: int, int8: Exported, tmp_path: Path) -> None:
    def leave(model: onnx.ModelProto) -> None:
        float_weights(model, [node for node in model.graph.node if node.op_type == "Conv"][index])

    with pytest.raises(ExportError, match="Conv x1 in float, and 0 layers are meant to be"):
        save_graph(changed(int8, leave), tmp_path / "a.onnx", opset=13, quantized=True)


def test_a_convolution_before_the_first_quantize_is_refused(int8: Exported, tmp_path: Path) -> None:
    def prepend(model: onnx.ModelProto) -> None:
        first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
        assert first.input[0] == "image"
        first.input[0] = "mixed"
        mix = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1) + np.float32(0.1)
        model.graph.initializer.append(numpy_helper.from_array(mix, "mix"))
        model.graph.node.insert(0, helper.make_node("Conv", ["image", "mix"], ["mixed"], name="float_stem"))

    with pytest.raises(ExportError, match="Conv x1 in float, and 0 layers are meant to be"):
        save_graph(changed(int8, prepend), tmp_path / "a.onnx", opset=13, quantized=True)


def test_a_float_operator_that_is_no_product_is_counted(int8: Exported, tmp_path: Path) -> None:
    def activate(model: onnx.ModelProto) -> None:
        first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
        first.input[0] = "activated"
        model.graph.node.insert(0, helper.make_node("HardSigmoid", ["image"], ["activated"], name="activation"))

    graph = save_graph(changed(int8, activate), tmp_path / "a.onnx", opset=13, quantized=True)
    assert graph.float_operators == {"HardSigmoid": 1}
