"""The ways of rounding, compared with ONNX Runtime's kernels for the CPU of this machine.

The fixed-point sums of arm64 are compared only on an arm64 machine. `tests/integration/pipeline/test_bundle.py` compares the
outputs of whole networks on emulated CPUs of both architectures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bundler.graphs.rounding_models import Affine, UInt8, additions, ambiguous, averages, functions, means, multiplications

EVERY = np.arange(256, dtype=np.uint8)
LEFT, RIGHT = (side.reshape(-1) for side in np.meshgrid(EVERY, EVERY, indexing="ij"))

affines = st.builds(
    Affine, scale=st.floats(0.004, 0.09).map(lambda scale: float(np.float32(scale))), zero_point=st.integers(0, 200)
)


def run(op_type: str, inputs: dict[str, NDArray[np.uint8]], qparams: list[Affine], **attributes: Any) -> UInt8:
    """Run one of ONNX Runtime's own INT8 operators."""
    names, constants = [], []
    for index, affine in enumerate(qparams):
        if index < len(inputs):
            names.append(list(inputs)[index])
        names += [f"scale{index}", f"zero{index}"]
        constants.append(helper.make_tensor(f"scale{index}", TensorProto.FLOAT, [], [affine.scale]))
        constants.append(helper.make_tensor(f"zero{index}", TensorProto.UINT8, [], [affine.zero_point]))
    node = helper.make_node(op_type, names, ["out"], domain="com.microsoft", **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(name, TensorProto.UINT8, value.shape) for name, value in inputs.items()],
        [helper.make_tensor_value_info("out", TensorProto.UINT8, None)],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)], ir_version=8
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answers: UInt8 = session.run(None, inputs)[0]
    return answers


def is_one_of(answers: UInt8, ways: list[UInt8]) -> bool:
    """Return whether the result of every input is that of one of the ways of rounding."""
    return bool(np.any([answers.reshape(way.shape) == way for way in ways], axis=0).all())


@settings(max_examples=25)
@given(a=affines, b=affines, spread=st.floats(0.4, 1.6), zero_point=st.integers(0, 200))
def test_sums_are_what_onnx_runtime_answers(a: Affine, b: Affine, spread: float, zero_point: int) -> None:
    result = Affine(scale=float(np.float32((a.scale + b.scale) * spread)), zero_point=zero_point)
    answers = run("QLinearAdd", {"a": LEFT, "b": RIGHT}, [a, b, result])
    ways = additions(a, b, result)
    assert is_one_of(answers, ways)
    if ambiguous(ways) == 0:
        assert np.array_equal(answers.reshape(256, 256), ways[0])


@settings(max_examples=25)
@given(a=affines, b=affines, steps=st.floats(40, 250), zero_point=st.integers(0, 200))
def test_products_are_what_onnx_runtime_answers(a: Affine, b: Affine, steps: float, zero_point: int) -> None:
    result = Affine(scale=float(np.float32(a.scale * b.scale * steps)), zero_point=zero_point)
    answers = run("QLinearMul", {"a": LEFT, "b": RIGHT}, [a, b, result])
    assert is_one_of(answers, multiplications(a, b, result))


@pytest.mark.parametrize("count", [49, 64])
def test_averages_are_what_onnx_runtime_answers(count: int) -> None:
    x, result = Affine(scale=0.031, zero_point=7), Affine(scale=0.031, zero_point=7)
    sums = np.arange(255 * count + 1)
    planes = np.minimum(np.maximum(sums[:, None] - 255 * np.arange(count), 0), 255).astype(np.uint8)
    answers = run("QLinearGlobalAveragePool", {"x": planes.reshape(1, len(sums), 1, count)}, [x, result], channels_last=0)
    ways = averages(x, result, count=count)
    assert is_one_of(answers, ways)
    # The mean of 64 integers lies in the middle between two for some sums; that of 49 never does.
    assert (ambiguous(ways) > 0) == (count == 64)


@settings(max_examples=25)
@given(x=affines, result=affines)
def test_sigmoids_are_what_onnx_runtime_answers(x: Affine, result: Affine) -> None:
    result = Affine(scale=float(np.float32(result.scale / 10)), zero_point=result.zero_point)
    answers = run("QLinearSigmoid", {"x": EVERY}, [x, result])
    assert is_one_of(answers, functions(x, result, lambda values: 1 / (1 + np.exp(-values))))


def test_halves_are_ambiguous_and_whole_results_are_not() -> None:
    half = Affine(scale=0.5, zero_point=0)
    whole = Affine(scale=1.0, zero_point=0)
    assert ambiguous(additions(half, half, whole)) > 0  # x.5: halves to the even one, and halves away from zero
    assert ambiguous(additions(whole, whole, whole)) == 0
    assert ambiguous(means(half, half, count=4)) > 0
    assert ambiguous(means(half, half, count=1)) == 0


@pytest.mark.parametrize("compute", [additions, multiplications])
def test_every_way_saturates(compute: Callable[..., list[UInt8]]) -> None:
    a, tiny = Affine(scale=1.0, zero_point=100), Affine(scale=0.1, zero_point=100)
    for way in compute(a, a, tiny):
        assert way.min() == 0
        assert way.max() == 255
