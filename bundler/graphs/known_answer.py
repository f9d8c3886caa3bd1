"""A small integer graph with a known answer, which every emulator has to reproduce before it executes a bundle's models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["KnownAnswer", "write_known_answer"]

KnownAnswer = tuple[NDArray[np.uint8], NDArray[np.int32]]

CHANNELS, FILTERS, SIZE, FEATURES = 16, 24, 9, 32
POSITIONS = (SIZE - 2) ** 2
LARGEST = 63  # of a weight: two products with 255 stay within int16, where processors without VNNI saturate
INPUT_ZERO_POINT, OUTPUT_ZERO_POINT = 117, 120
STEP = 256  # sums in one step of the convolution's result


def write_known_answer(path: Path, *, opset: int) -> KnownAnswer:
    """Write a graph `x` uint8 [1, 16, 9, 9] → `y` int32 [2, 24, 32]; return an input and its exact answer.

    A QLinearConv of uint8 and int8, whose result goes through two MatMulInteger: of uint8 and int8, and of int8 and int8. They
    use the integer kernels of the INT8 models (SIMD products, and the rounding behind them), and every ONNX Runtime from 1.16
    on has them, while ConvInteger takes int8 weights only from 1.24 on. Every processor must give the same integers: weights
    stay within ±63, so that no pair of products saturates, and the biases keep the convolution's sums away from the halves
    between two steps, so that every way of rounding gives the same. The answer comes from numpy's 64-bit integers.
    """
    generator = np.random.default_rng(2024)
    x = generator.integers(0, 256, (1, CHANNELS, SIZE, SIZE), dtype=np.uint8)
    filters = generator.integers(-LARGEST, LARGEST + 1, (FILTERS, CHANNELS, 3, 3), dtype=np.int8)
    first, second = generator.integers(-LARGEST, LARGEST + 1, (2, POSITIONS, FEATURES), dtype=np.int8)
    centred = x.astype(np.int64) - INPUT_ZERO_POINT
    windows = np.lib.stride_tricks.sliding_window_view(centred[0], (3, 3), axis=(1, 2))
    sums = np.einsum("chwij,fcij->fhw", windows, filters.astype(np.int64)).reshape(FILTERS, POSITIONS)
    bias = np.array([_bias(row) for row in sums], np.int32)
    steps = np.rint((sums + bias[:, None]) / STEP).astype(np.int64) + OUTPUT_ZERO_POINT
    convolved = steps.clip(0, 255)
    answer = np.stack([(convolved - OUTPUT_ZERO_POINT) @ first.astype(np.int64), (convolved - 128) @ second.astype(np.int64)])

    def constant(name: str, values: Any, dtype: type[np.generic]) -> onnx.TensorProto:
        return numpy_helper.from_array(np.asarray(values, dtype), name)

    nodes = [
        helper.make_node(
            "QLinearConv", ["x", "one", "x_zero", "filters", "one", "zero", "step", "z_zero", "bias"], ["z"], name="convolution"
        ),
        helper.make_node("Reshape", ["z", "rows"], ["unsigned"], name="reshape"),
        helper.make_node("MatMulInteger", ["unsigned", "first", "z_zero"], ["y_first"], name="uint8_int8"),
        helper.make_node("Cast", ["unsigned"], ["wide"], name="widen", to=TensorProto.INT32),
        helper.make_node("Sub", ["wide", "middle"], ["shifted"], name="shift"),
        helper.make_node("Cast", ["shifted"], ["signed"], name="narrow", to=TensorProto.INT8),
        helper.make_node("MatMulInteger", ["signed", "second"], ["y_second"], name="int8_int8"),
        helper.make_node("Concat", ["y_first", "y_second"], ["y"], name="concatenate", axis=0),
    ]
    constants = [
        constant("one", 1, np.float32),
        constant("zero", 0, np.int8),
        constant("x_zero", INPUT_ZERO_POINT, np.uint8),
        constant("filters", filters, np.int8),
        constant("step", STEP, np.float32),
        constant("z_zero", OUTPUT_ZERO_POINT, np.uint8),
        constant("bias", bias, np.int32),
        constant("rows", (1, FILTERS, POSITIONS), np.int64),
        constant("first", first, np.int8),
        constant("middle", 128, np.int32),
        constant("second", second, np.int8),
    ]
    graph = helper.make_graph(
        nodes,
        "known-answer",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, answer.shape)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name="edge-bundler")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return x, answer.astype(np.int32)


def _bias(sums: NDArray[np.int64]) -> int:
    """Return what keeps these sums at least one away from the middle between two multiples of STEP."""
    middles = {(STEP // 2 - int(value)) % STEP for value in sums}
    return next(bias for bias in range(STEP) if not middles & {bias, (bias + 1) % STEP, (bias - 1) % STEP})
