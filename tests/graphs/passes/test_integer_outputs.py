"""Outputs that are not rounded to 8 bits: nearer to FP32 than rounded ones, the same sums, and nothing else changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from bundler.errors import ExportError
from bundler.graphs.comparison import sqnr_db
from bundler.graphs.host_runs import run_reference, runnable
from bundler.graphs.passes.integer_outputs import LogitsRounding, release_logits, release_raw_maps

Exported = Any  # of conftest.py
Numbers = NDArray[Any]


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


def quantized_map(folder: Path, weight: Numbers, scales: Numbers, bias: Numbers, **attributes: Any) -> Path:
    """Write a convolution of integers (step 0.02 around 77), rounded to 8 bits, whose map a Sigmoid and a Neg decode."""
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "step", "zero"], ["u8"]),
        helper.make_node("DequantizeLinear", ["u8", "step", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["w8", "scales", "zeros"], ["w"], axis=0),
        helper.make_node("DequantizeLinear", ["b32", "units"], ["b"], axis=0),
        helper.make_node("Conv", ["x", "w", "b"], ["map"], name="/head/Conv", **attributes),
        helper.make_node("QuantizeLinear", ["map", "wide", "zero"], ["m8"]),
        helper.make_node("DequantizeLinear", ["m8", "wide", "zero"], ["raw"]),
        helper.make_node("Sigmoid", ["raw"], ["scores"]),
        helper.make_node("Neg", ["raw"], ["sizes"]),
        helper.make_node("Concat", ["scores", "sizes"], ["detections"], axis=1),
    ]
    constants = {
        "step": np.float32(0.02),
        "zero": np.uint8(77),
        "w8": weight.astype(np.int8),
        "scales": scales.astype(np.float32),
        "zeros": np.zeros(len(scales), np.int8),
        "b32": bias.astype(np.int32),
        "units": np.float32(0.02) * scales.astype(np.float32),
        "wide": np.float32(0.5),
    }
    shape = ["batch", weight.shape[1] * attributes.get("group", 1), 9, 7]
    graph = helper.make_graph(
        nodes,
        "head",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("detections", TensorProto.FLOAT, ["batch", "values", "rows", "columns"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "head.onnx")
    return folder / "head.onnx"


def decoded(path: Path, image: Numbers) -> tuple[Numbers, Numbers]:
    scores, sizes = np.split(ort.InferenceSession(path).run(None, {"image": image})[0], 2, axis=1)
    return scores, -sizes


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [1, 1]},
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]},
        {"kernel_shape": [3, 3], "pads": [2, 2, 2, 2], "dilations": [2, 2], "group": 2},
    ],
)
def test_raw_maps_are_sums_times_their_scales_to_the_last_bit(attributes: dict[str, Any], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    weight = generator.integers(-63, 64, (6, 4 // attributes.get("group", 1), *attributes["kernel_shape"]))
    scales = generator.uniform(1e-3, 1e-1, 6).astype(np.float32)
    bias = generator.integers(-9_000, 9_000, 6)
    image = generator.normal(size=(3, 4, 9, 7)).astype(np.float32)
    path = quantized_map(tmp_path, weight, scales, bias, **attributes)
    rounded_scores, rounded = decoded(path, image)
    release_raw_maps(path, "detections")
    onnx.checker.check_model(onnx.load(path), full_check=True)
    scores, maps = decoded(path, image)

    integers = np.clip(np.rint(image / np.float32(0.02)) + 77, 0, 255) - 77
    sums = nn.functional.conv2d(
        torch.from_numpy(integers).double(),
        torch.from_numpy(weight).double(),
        torch.from_numpy(bias).double(),
        attributes.get("strides", 1),
        attributes.get("pads", [0])[0],
        attributes.get("dilations", 1),
        attributes.get("group", 1),
    ).numpy()
    np.testing.assert_array_equal(maps, sums.astype(np.float32) * (np.float32(0.02) * scales).reshape(-1, 1, 1))
    inside = (rounded > -77 * 0.5) & (rounded < 178 * 0.5)
    assert inside.mean() > 0.5
    assert 0.2 < float(np.abs(maps - rounded)[inside].max()) <= 0.2501  # half a step of 0.5, less where all was inside
    assert float(np.abs(scores - rounded_scores).max()) > 0.01


def test_the_rounding_of_raw_maps_is_gone_and_nothing_else(tmp_path: Path) -> None:
    weight = np.ones((2, 2, 1, 1))
    path = quantized_map(tmp_path, weight, np.array([0.1, 0.2]), np.zeros(2), kernel_shape=[1, 1])
    release_raw_maps(path, "detections")
    graph = onnx.load(path).graph
    names = [node.op_type for node in graph.node]
    assert names == ["QuantizeLinear", "ConvInteger", "Add", "Cast", "Mul", "Sigmoid", "Neg", "Concat"]
    read = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read  # nothing that only the rounding needed


def test_maps_that_are_computed_in_float_stay(tmp_path: Path) -> None:
    path = quantized_map(tmp_path, np.ones((2, 2, 1, 1)), np.array([0.1, 0.2]), np.zeros(2), kernel_shape=[1, 1])
    model = onnx.load(path)
    for name in ("w", "b"):  # what was dequantized becomes a constant in float
        node = next(node for node in model.graph.node if node.output[0] == name)
        shape = (2, 2, 1, 1) if name == "w" else (2,)
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
        model.graph.node.remove(node)
    onnx.save(model, path)
    before = [node.op_type for node in onnx.load(path).graph.node]
    release_raw_maps(path, "detections")
    assert [node.op_type for node in onnx.load(path).graph.node] == before
