"""Logits that are not rounded to 8 bits: nearer to FP32 than rounded ones, the same sums, and nothing else changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from bundler.errors import ExportError
from bundler.export.agreement import sqnr_db
from bundler.export.logits import LogitsRounding, release_logits
from bundler.export.reference import run_reference, runnable

Exported = Any  # of conftest.py


def rounded_again(exported: Exported, path: Path) -> Path:
    """Write the graph as the exporter would have left it: with a Quantize and a Dequantize behind its logits."""
    model, rounding = onnx.load(exported.graph.path), exported.graph.rounding
    model.graph.node[-1].output[0] = "sums"
    model.graph.node.append(helper.make_node("QuantizeLinear", ["sums", "step", "zero"], ["integers"], name="q"))
    model.graph.node.append(helper.make_node("DequantizeLinear", ["integers", "step", "zero"], ["logits"], name="dq"))
    zero = np.uint8(round(-rounding.lowest / rounding.step))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(rounding.step), "step"))
    model.graph.initializer.append(numpy_helper.from_array(zero, "zero"))
    onnx.save(model, path)
    return path


def test_logits_are_sums_times_their_scales(int8: Exported, golden: Tensor) -> None:
    outputs = run_reference(int8.graph, golden.numpy(), "all")
    layer = int8.model.classifier[1]
    model = onnx.load(int8.graph.path)
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    product = producers["logits"]
    assert product.op_type == "Gemm"
    units = scales[producers[product.input[0]].input[1]] * scales[producers[product.input[1]].input[1]]
    sums = outputs / units.reshape(1, -1)
    assert float(np.abs(sums - np.rint(sums)).max()) < 2e-2  # of up to 2^20, in float32
    assert len(np.unique(np.rint(outputs / layer.scale))) < len(np.unique(outputs))


def test_rounding_them_to_8_bits_costs_accuracy_and_gives_torchs_logits(int8: Exported, golden: Tensor, tmp_path: Path) -> None:
    path = rounded_again(int8, tmp_path / "rounded.onnx")
    outputs = run_reference(int8.graph, golden.numpy(), "all")
    graph = int8.graph
    rounded = np.concatenate(
        [runnable(graph.__class__(**{**vars(graph), "path": path}), "all")(x[None]) for x in golden.numpy()]
    )
    np.testing.assert_allclose(graph.rounding.applied(outputs), rounded, atol=1.01 * graph.rounding.step)  # a tie, at most
    assert float(np.mean(np.isclose(graph.rounding.applied(outputs), rounded))) > 0.9
    assert sqnr_db(outputs, rounded) < 60  # there is something to lose


def test_what_was_taken_away_is_told(int8: Exported, tmp_path: Path) -> None:
    path = rounded_again(int8, tmp_path / "rounded.onnx")
    rounding = release_logits(path, "logits")
    assert rounding == int8.graph.rounding
    assert rounding.step == pytest.approx(int8.model.classifier[1].scale)
    released, before = onnx.load(path).graph, onnx.load(int8.graph.path).graph
    assert [node.op_type for node in released.node] == [node.op_type for node in before.node]
    assert released.output[0].name == released.node[-1].output[0] == "logits"


@pytest.mark.parametrize("operator", ["Relu", "Conv"])
def test_what_follows_something_else_than_integers_stays(operator: str, tmp_path: Path) -> None:
    inputs = ["image"] if operator == "Relu" else ["image", "weight"]
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node(operator, inputs, ["values"]),
                helper.make_node("QuantizeLinear", ["values", "scale", "zero"], ["integers"]),
                helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["logits"]),
            ],
            "scales",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 1, 1])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, 1, 1])],
            [
                numpy_helper.from_array(np.float32(0.5), "scale"),
                numpy_helper.from_array(np.uint8(3), "zero"),
                numpy_helper.from_array(np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1), "weight"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "scales.onnx")
    assert release_logits(tmp_path / "scales.onnx", "logits") == LogitsRounding(step=0.5, lowest=-1.5, highest=126.0)
    assert len(onnx.load(tmp_path / "scales.onnx").graph.node) == 3


def test_an_output_that_is_not_dequantized_last_is_refused(int8: Exported, tmp_path: Path) -> None:
    model = onnx.load(rounded_again(int8, tmp_path / "soft.onnx"))
    model.graph.node[-1].output[0] = "scores"
    model.graph.node.append(helper.make_node("Softmax", ["scores"], ["logits"], name="soft", axis=1))
    onnx.save(model, tmp_path / "soft.onnx")
    with pytest.raises(ExportError, match="comes from Softmax 'soft' and not from a DequantizeLinear"):
        release_logits(tmp_path / "soft.onnx", "logits")


@given(st.integers(0, 2**32 - 1), st.floats(1e-4, 10), st.integers(0, 255))
def test_rounding_is_to_the_nearest_of_256(seed: int, step: float, zero_point: int) -> None:
    rounding = LogitsRounding(step=step, lowest=-zero_point * step, highest=(255 - zero_point) * step)
    logits = (np.random.default_rng(seed).normal(size=(4, 10)) * 100 * step).astype(np.float32)
    rounded = rounding.applied(logits)
    inside = (logits > rounding.lowest) & (logits < rounding.highest)
    assert float(np.abs(rounded - logits)[inside].max(initial=0)) <= 0.5001 * step
    assert rounded.min() >= np.float32(rounding.lowest) - step / 1e5
    assert rounded.max() <= np.float32(rounding.highest) + step / 1e5
    np.testing.assert_allclose(rounding.applied(rounded), rounded, rtol=1e-6)
