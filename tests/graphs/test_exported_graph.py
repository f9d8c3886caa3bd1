"""What `ensure_graph` refuses; the graphs are real exports that one thing was changed in, or tiny ones written here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bundler.errors import ExportError
from bundler.graphs.exported_graph import ensure_graph

Exported = Any  # of conftest.py


@pytest.fixture
def tampered(tmp_path: Path) -> Callable[[Exported, Callable[[onnx.ModelProto], None]], Path]:
    def tamper(exported: Exported, change: Callable[[onnx.ModelProto], None]) -> Path:
        model = onnx.load(exported.graph.path)
        change(model)
        onnx.save(model, tmp_path / "tampered.onnx")
        return tmp_path / "tampered.onnx"

    return tamper


Tamper = Callable[[Exported, Callable[[onnx.ModelProto], None]], Path]


def test_an_untouched_graph_holds(fp32: Exported, int8: Exported, tampered: Tamper) -> None:
    for exported in (fp32, int8):
        path = tampered(exported, lambda _: None)
        graph = ensure_graph(path, opset=13, quantized=exported.graph.quantized, rounding=exported.graph.rounding)
        assert graph.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert graph.output_step == exported.graph.output_step


def test_another_opset_is_refused(fp32: Exported, tampered: Tamper) -> None:
    with pytest.raises(ExportError, match=r"operator sets \{'': 13\}, not 14"):
        ensure_graph(fp32.graph.path, opset=14, quantized=False)

    def twelve(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 12

    with pytest.raises(ExportError, match=r"\{'': 12\}, not 13"):
        ensure_graph(tampered(fp32, twelve), opset=13, quantized=False)


def test_operators_of_another_domain_are_refused(fp32: Exported, tampered: Tamper) -> None:
    def custom(model: onnx.ModelProto) -> None:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    with pytest.raises(ExportError, match=r"com\.microsoft"):
        ensure_graph(tampered(fp32, custom), opset=13, quantized=False)


def rename(model: onnx.ModelProto, old: str, new: str) -> None:
    for value in (*model.graph.input, *model.graph.output):
        if value.name == old:
            value.name = new
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


@pytest.mark.parametrize(("kind", "name"), [("input", "image"), ("output", "logits")])
def test_other_names_are_refused(kind: str, name: str, fp32: Exported, tampered: Tamper) -> None:
    with pytest.raises(ExportError, match=rf"its {kind} is called \['other'\], not '{name}'"):
        ensure_graph(tampered(fp32, lambda model: rename(model, name, "other")), opset=13, quantized=False)


@pytest.mark.parametrize("kind", ["input", "output"])
def test_a_fixed_batch_axis_is_refused(kind: str, fp32: Exported, int8: Exported, tampered: Tamper) -> None:
    def fix(model: onnx.ModelProto) -> None:
        getattr(model.graph, kind)[0].type.tensor_type.shape.dim[0].dim_value = 2

    for exported in (fp32, int8):
        with pytest.raises(ExportError, match=f"the batch axis of its {kind} is not dynamic"):
            ensure_graph(tampered(exported, fix), opset=13, quantized=exported.graph.quantized)


def test_a_float_graph_and_a_quantized_one_are_not_confused(fp32: Exported, int8: Exported) -> None:
    with pytest.raises(ExportError, match="0 QuantizeLinear and 0 DequantizeLinear"):
        ensure_graph(fp32.graph.path, opset=13, quantized=True)
    with pytest.raises(ExportError, match=r"[1-9]\d* QuantizeLinear"):
        ensure_graph(int8.graph.path, opset=13, quantized=False)


def test_a_graph_that_onnx_refuses_is_refused(fp32: Exported, tampered: Tamper) -> None:
    def lose(model: onnx.ModelProto) -> None:
        del model.graph.initializer[0]

    def misshape(model: onnx.ModelProto) -> None:
        weights = next(tensor for tensor in model.graph.initializer if tensor.name == "classifier.1.weight")
        weights.CopyFrom(numpy_helper.from_array(np.ones((10, 7), np.float32), weights.name))

    for change in (lose, misshape):
        with pytest.raises(ExportError, match=r"onnx\.checker refuses it"):
            ensure_graph(tampered(fp32, change), opset=13, quantized=False)


def float_weights(model: onnx.ModelProto, convolution: onnx.NodeProto) -> None:
    """Give a convolution its weights in float instead of dequantized ones."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    producer = next(node for node in model.graph.node if convolution.input[1] in node.output)
    integers, scale = constants[producer.input[0]].astype(np.float32), constants[producer.input[1]]
    weights = integers * scale.reshape(-1, 1, 1, 1)
    model.graph.initializer.append(numpy_helper.from_array(weights.astype(np.float32), "float_weights"))
    convolution.input[1] = "float_weights"


@pytest.mark.parametrize("index", [0, 30])
def test_a_convolution_left_in_float_is_refused(index: int, int8: Exported, tampered: Tamper) -> None:
    def leave(model: onnx.ModelProto) -> None:
        float_weights(model, [node for node in model.graph.node if node.op_type == "Conv"][index])

    with pytest.raises(ExportError, match="Conv x1 in float, and 0 layers are meant to be"):
        ensure_graph(tampered(int8, leave), opset=13, quantized=True)


def test_a_convolution_before_the_first_quantize_is_refused(int8: Exported, tampered: Tamper) -> None:
    def prepend(model: onnx.ModelProto) -> None:
        first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
        assert first.input[0] == "image"
        first.input[0] = "mixed"
        mix = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1) + np.float32(0.1)
        model.graph.initializer.append(numpy_helper.from_array(mix, "mix"))
        model.graph.node.insert(0, helper.make_node("Conv", ["image", "mix"], ["mixed"], name="float_stem"))

    with pytest.raises(ExportError, match="Conv x1 in float, and 0 layers are meant to be"):
        ensure_graph(tampered(int8, prepend), opset=13, quantized=True)


def test_a_float_operator_that_is_no_product_is_counted(int8: Exported, tampered: Tamper) -> None:
    def activate(model: onnx.ModelProto) -> None:
        first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
        first.input[0] = "activated"
        model.graph.node.insert(0, helper.make_node("HardSigmoid", ["image"], ["activated"], name="activation"))

    graph = ensure_graph(tampered(int8, activate), opset=13, quantized=True)
    assert graph.float_operators == {"HardSigmoid": 1}
