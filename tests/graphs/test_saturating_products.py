"""Which products saturate according to the weights of a graph: with the profiles none, with torch's defaults some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from bundler.graphs.exporter import export_onnx
from bundler.graphs.saturating_products import SaturationCheck, check_saturation
from bundler.models.registry import find_model, load_parser
from bundler.quantization import calibrate, convert, quantized_engine
from bundler.targets import TargetProfile


def check_of(weight: NDArray[np.int8], *, group: int = 1, summed: bool = False) -> SaturationCheck:
    """Make a graph of one convolution with these weights, int8 [O, I, kH, kW], and return its check."""
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["dequantized"]),
        helper.make_node("Conv", ["x", "dequantized"], ["y"], name="conv", group=group),
    ]
    if summed:
        nodes = [helper.make_node("ConvInteger", ["x", "w"], ["y"], name="conv", group=group)]
    channels = weight.shape[1] * group
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.array(0.1, np.float32), "scale"),
            numpy_helper.from_array(np.array(0, np.int8), "zero"),
        ],
    )
    (check,) = check_saturation(ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])))
    return check


def vpmaddubsw(activations: NDArray[np.uint8], weights: NDArray[np.int8]) -> NDArray[np.int64]:
    """Add products pair by pair as AVX2 does: in 16 bits, with saturation (Intel's manual, PMADDUBSW)."""
    products = activations.astype(np.int64) * weights.astype(np.int64)
    sums: NDArray[np.int64] = np.clip(products[..., ::2] + products[..., 1::2], -(2**15), 2**15 - 1)
    return sums


@pytest.mark.parametrize("sums", [(128, 0), (129, 1), (-128, 0), (-129, 1)])
def test_the_bound_is_where_the_instruction_saturates(sums: tuple[int, int]) -> None:
    total, saturating = sums
    pair = np.array([total - total // 2, total // 2], np.int8)
    exact = int((np.array([255, 255]) * pair.astype(np.int64)).sum())
    assert (int(vpmaddubsw(np.array([255, 255], np.uint8), pair)[0]) != exact) == bool(saturating)
    check = check_of(pair.reshape(1, 2, 1, 1))
    assert check.saturating_channels == saturating
    assert total in (check.smallest_sum, check.largest_sum)


def test_neighbours_are_channels_of_a_position_and_then_the_next_position() -> None:
    weight = np.zeros((3, 4, 3, 3), np.int8)
    weight[0, 1:3, 1, 1] = 100  # side by side
    weight[1, 3, 0, 0] = weight[1, 0, 0, 1] = 100  # the last of one position and the first of the next
    weight[2, 1, 0, 0] = weight[2, 1, 0, 1] = 100  # of one channel, and so four apart
    assert check_of(weight).saturating_channels == 2


@pytest.mark.parametrize("summed", [False, True])
def test_depthwise_convolutions_add_in_32_bits_and_grouped_ones_do_not(summed: bool) -> None:
    weight = np.full((4, 1, 3, 3), 127, np.int8)
    depthwise = check_of(weight, group=4, summed=summed)
    multiplied = check_of(np.repeat(weight, 2, 0), group=4, summed=summed)
    assert (depthwise.paired, depthwise.saturating_channels) == (False, 0)
    assert (multiplied.paired, multiplied.saturating_channels) == (True, 8)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_nothing_saturates_with_the_profiles_and_some_products_do_with_torchs_defaults(
    name: str,
    weights_of: Callable[[str], Mapping[str, Tensor]],
    target: TargetProfile,
    without_options: Callable[[TargetProfile], TargetProfile],
    calibration: Tensor,
    golden: Tensor,
    tmp_path: Path,
) -> None:
    parser = load_parser(find_model(name)[1])

    def saturating(quantization: TargetProfile) -> int:
        prepared = parser(weights=weights_of(name), num_classes=10, quantize=True, target=quantization.quantization)
        calibrate(prepared, [calibration])
        converted = convert(prepared, quantization.quantization)
        with quantized_engine(quantization.quantization.engine):
            graph = export_onnx(converted, golden[:2], tmp_path / "int8.onnx", opset=13, quantized=True)
        operators = [node.op_type for node in onnx.load(graph.path).graph.node]
        assert len(graph.saturation) == operators.count("Conv") + operators.count("Gemm")
        return sum(1 for check in graph.saturation if check.saturating_channels)

    assert saturating(target) == 0
    assert saturating(without_options(target)) > 0
