"""Raw maps of detectors without requantization: dequantized accumulators, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from bundler.graphs.passes.raw_map_rounding import StripRawMapRoundingPass
from bundler.graphs.serialization import to_proto

Numbers = NDArray[Any]


def quantized_map(weight: Numbers, scales: Numbers, bias: Numbers, **attributes: Any) -> onnx.ModelProto:
    """Make a convolution of integers (step 0.02 around 77), rounded to 8 bits, whose map a Sigmoid and a Neg decode."""
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
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def stripped(model: onnx.ModelProto) -> onnx.ModelProto:
    return to_proto(StripRawMapRoundingPass()(ir.from_proto(model)).model)


def decoded(model: onnx.ModelProto, image: Numbers) -> tuple[Numbers, Numbers]:
    scores, sizes = np.split(ort.InferenceSession(model.SerializeToString()).run(None, {"image": image})[0], 2, axis=1)
    return scores, -sizes


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [1, 1]},
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]},
        {"kernel_shape": [3, 3], "pads": [2, 2, 2, 2], "dilations": [2, 2], "group": 2},
    ],
)
def test_raw_maps_are_accumulators_times_their_scales_to_the_last_bit(attributes: dict[str, Any]) -> None:
    generator = np.random.default_rng(0)
    weight = generator.integers(-63, 64, (6, 4 // attributes.get("group", 1), *attributes["kernel_shape"]))
    scales = generator.uniform(1e-3, 1e-1, 6).astype(np.float32)
    bias = generator.integers(-9_000, 9_000, 6)
    image = generator.normal(size=(3, 4, 9, 7)).astype(np.float32)
    before = quantized_map(weight, scales, bias, **attributes)
    rounded_scores, rounded = decoded(before, image)
    after = stripped(before)
    onnx.checker.check_model(after, full_check=True)
    scores, maps = decoded(after, image)

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


def test_only_the_rounding_of_raw_maps_is_removed() -> None:
    weight = np.ones((2, 2, 1, 1))
    graph = stripped(quantized_map(weight, np.array([0.1, 0.2]), np.zeros(2), kernel_shape=[1, 1])).graph
    names = [node.op_type for node in graph.node]
    assert names == ["QuantizeLinear", "ConvInteger", "Add", "Cast", "Mul", "Sigmoid", "Neg", "Concat"]
    read = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read  # nothing that only the rounding needed


def test_maps_that_are_computed_in_float_stay() -> None:
    model = quantized_map(np.ones((2, 2, 1, 1)), np.array([0.1, 0.2]), np.zeros(2), kernel_shape=[1, 1])
    for name in ("w", "b"):  # what was dequantized becomes a constant in float
        node = next(node for node in model.graph.node if node.output[0] == name)
        shape = (2, 2, 1, 1) if name == "w" else (2,)
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
        model.graph.node.remove(node)
    assert list(stripped(model).graph.node) == list(model.graph.node)


def test_a_map_that_is_also_read_in_integers_stays() -> None:
    """That of a backbone, which the next layer reads."""
    model = quantized_map(np.ones((2, 2, 1, 1)), np.array([0.1, 0.2]), np.zeros(2), kernel_shape=[1, 1])
    model.graph.node.append(helper.make_node("MaxPool", ["m8"], ["pooled"], kernel_shape=[1, 1]))
    model.graph.output.append(helper.make_tensor_value_info("pooled", TensorProto.UINT8, None))
    assert [node.op_type for node in stripped(model).graph.node] == [node.op_type for node in model.graph.node]


def test_what_it_ensures_is_checked() -> None:
    model = quantized_map(np.ones((2, 2, 1, 1)), np.array([0.1, 0.2]), np.zeros(2), kernel_shape=[1, 1])
    with pytest.raises(ir.passes.PostconditionError, match="the map of /head/Conv is still rounded"):
        StripRawMapRoundingPass().ensures(ir.from_proto(model))
