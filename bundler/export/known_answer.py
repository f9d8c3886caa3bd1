"""A tiny integer graph whose answer is known without running it: the question every emulator is asked first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["KnownAnswer", "write_known_answer"]

KnownAnswer = tuple[NDArray[np.uint8], NDArray[np.int32]]

CHANNELS, FILTERS, SIZE = 16, 24, 9


def write_known_answer(path: Path, *, opset: int) -> KnownAnswer:
    """Write a ConvInteger graph `x` uint8 [1, 16, 9, 9] → `y` int32 [1, 24, 7, 7]; return an input and its exact answer.

    It goes through the same integer kernels as the INT8 models (SIMD products of uint8 and int8). Weights stay within ±63, so
    that no pair of products leaves the int16 range and every processor must give the same integers. The answer comes from
    numpy's 64-bit integers.
    """
    generator = np.random.default_rng(2024)
    x = generator.integers(0, 256, (1, CHANNELS, SIZE, SIZE), dtype=np.uint8)
    weights = generator.integers(-63, 64, (FILTERS, CHANNELS, 3, 3), dtype=np.int8)
    zero_point = np.uint8(117)
    graph = helper.make_graph(
        [helper.make_node("ConvInteger", ["x", "w", "x_zero_point"], ["y"], name="known_answer")],
        "known-answer",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, (1, FILTERS, SIZE - 2, SIZE - 2))],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.asarray(zero_point), "x_zero_point")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name="edge-bundler")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    centred = x.astype(np.int64) - int(zero_point)
    windows = np.lib.stride_tricks.sliding_window_view(centred[0], (3, 3), axis=(1, 2))
    answer = np.einsum("chwij,fcij->fhw", windows, weights.astype(np.int64))
    return x, answer[None].astype(np.int32)
