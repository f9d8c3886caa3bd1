from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from bundler.graphs.known_answer import write_known_answer


@pytest.mark.parametrize("precise", ["0", "1"])
def test_onnx_runtime_gives_the_exact_answer(precise: str, tmp_path: Path) -> None:
    """On an x86 without VNNI as well, where pairs of products saturate, whether it is told to avoid that or not."""
    x, answer = write_known_answer(tmp_path / "known-answer.onnx", opset=13)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", precise)
    session = ort.InferenceSession(tmp_path / "known-answer.onnx", options, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"x": x})
    assert outputs.dtype == answer.dtype == np.int32
    assert outputs.shape == (2, 24, 32)
    assert np.array_equal(outputs, answer)
    assert len(np.unique(answer)) > 1000


def test_no_pair_of_products_leaves_sixteen_bits(tmp_path: Path) -> None:
    write_known_answer(tmp_path / "known-answer.onnx", opset=13)
    model = onnx.load(tmp_path / "known-answer.onnx")
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor).astype(int) for tensor in model.graph.initializer}
    for name in ("filters", "first", "second"):
        assert 2 * 255 * np.abs(tensors[name]).max() <= np.iinfo(np.int16).max
        assert np.abs(tensors[name]).max() > 60
    assert model.opset_import[0].version == 13


def test_the_convolution_saturates_at_both_ends_and_never_lies_between_two_steps(tmp_path: Path) -> None:
    """A sum in the middle between two steps would be rounded down by one processor and up by another."""
    x, _ = write_known_answer(tmp_path / "known-answer.onnx", opset=13)
    model = onnx.load(tmp_path / "known-answer.onnx")
    del model.graph.node[1:]
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.UINT8, None))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (steps,) = session.run(None, {"x": x})
    assert len(np.unique(steps)) > 200
    assert 0.05 < (steps == 0).mean() < 0.3
    assert 0.05 < (steps == 255).mean() < 0.3
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    windows = np.lib.stride_tricks.sliding_window_view(x[0].astype(int) - int(tensors["x_zero"]), (3, 3), axis=(1, 2))
    sums = np.einsum("chwij,fcij->fhw", windows, tensors["filters"].astype(int)) + tensors["bias"].reshape(-1, 1, 1)
    assert not np.isin(sums % 256, (127, 128, 129)).any()


def test_every_operator_takes_its_types_in_onnx_runtime_1_17(tmp_path: Path) -> None:
    """ConvInteger with int8 weights came with 1.24; the last ONNX Runtime for Python 3.10 is 1.23.2."""
    write_known_answer(tmp_path / "known-answer.onnx", opset=13)
    operators = {node.op_type for node in onnx.load(tmp_path / "known-answer.onnx").graph.node}
    assert operators == {"QLinearConv", "Reshape", "MatMulInteger", "Cast", "Sub", "Concat"}


def test_the_file_is_the_same_each_time(tmp_path: Path) -> None:
    first, again = (write_known_answer(tmp_path / name, opset=13) for name in ("a.onnx", "b.onnx"))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
