"""Logits without requantization: dequantized accumulators, nearer to FP32, and nothing else in the graph is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from bundler.device.numerics import sqnr_db
from bundler.graphs.host_runs import run_reference
from bundler.graphs.host_sessions import make_session
from bundler.graphs.passes.logits_rounding import LogitsRounding, StripLogitsRoundingPass
from bundler.graphs.serialization import to_proto

Exported = Any  # of conftest.py


def rounded_again(exported: Exported) -> onnx.ModelProto:
    """Return the graph as the exporter left it: with a QuantizeLinear and a DequantizeLinear behind its logits."""
    model, rounding = onnx.load(exported.graph.path), exported.graph.rounding
    model.graph.node[-1].output[0] = "sums"
    model.graph.node.append(helper.make_node("QuantizeLinear", ["sums", "step", "zero"], ["integers"], name="q"))
    model.graph.node.append(helper.make_node("DequantizeLinear", ["integers", "step", "zero"], ["logits"], name="dq"))
    zero = np.array(round(-rounding.lowest / rounding.step), np.uint8)
    model.graph.initializer.append(numpy_helper.from_array(np.array(rounding.step, np.float32), "step"))
    model.graph.initializer.append(numpy_helper.from_array(zero, "zero"))
    return model


def test_logits_are_accumulators_times_their_scales(int8: Exported, golden: Tensor) -> None:
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
    onnx.save(rounded_again(int8), tmp_path / "rounded.onnx")
    graph, session = int8.graph, make_session(tmp_path / "rounded.onnx")
    outputs = run_reference(graph, golden.numpy(), "all")
    rounded = np.concatenate([session.run(None, {"image": image[None]})[0] for image in golden.numpy()])
    np.testing.assert_allclose(graph.rounding.applied(outputs), rounded, atol=1.01 * graph.rounding.step)  # a tie, at most
    assert float(np.mean(np.isclose(graph.rounding.applied(outputs), rounded))) > 0.9
    assert sqnr_db(outputs, rounded) < 60  # there is something to lose


def test_the_pass_states_the_rounding_that_it_removes_and_changes_nothing_else(int8: Exported) -> None:
    model, strip = ir.from_proto(rounded_again(int8)), StripLogitsRoundingPass()
    assert strip(model).modified
    assert strip.rounding == int8.graph.rounding
    assert strip.rounding is not None
    assert strip.rounding.step == pytest.approx(int8.model.classifier[1].scale)
    assert to_proto(model) == onnx.load(int8.graph.path)


@pytest.mark.parametrize("operator", ["Relu", "Conv"])
def test_the_rounding_of_something_else_than_a_gemm_in_integers_stays(operator: str) -> None:
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
                numpy_helper.from_array(np.array(0.5, np.float32), "scale"),
                numpy_helper.from_array(np.array(3, np.uint8), "zero"),
                numpy_helper.from_array(np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1), "weight"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    graph, strip = ir.from_proto(model), StripLogitsRoundingPass()
    assert not strip(graph).modified
    assert strip.rounding == LogitsRounding(step=0.5, lowest=-1.5, highest=126.0)
    assert to_proto(graph).graph == model.graph


def test_the_output_must_come_from_a_dequantize_linear(int8: Exported) -> None:
    model = rounded_again(int8)
    model.graph.node[-1].output[0] = "scores"
    model.graph.node.append(helper.make_node("Softmax", ["scores"], ["logits"], name="soft", axis=1))
    with pytest.raises(ir.passes.PreconditionError, match="comes from Softmax 'soft' and not from a DequantizeLinear"):
        StripLogitsRoundingPass()(ir.from_proto(model))


def test_what_it_ensures_is_checked(int8: Exported) -> None:
    with pytest.raises(ir.passes.PostconditionError, match="its output is still rounded by dq"):
        StripLogitsRoundingPass().ensures(ir.from_proto(rounded_again(int8)))


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
