from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from bundler.export.known_answer import write_known_answer


@pytest.mark.parametrize("precise", ["0", "1"])
def test_onnx_runtime_gives_the_exact_answer(precise: str, tmp_path: Path) -> None:
    """On an x86 without VNNI as well, where pairs of products saturate, whether it is told to avoid that or not."""
    x, answer = write_known_answer(tmp_path / "known-answer.onnx", opset=13)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", precise)
    session = ort.InferenceSession(tmp_path / "known-answer.onnx", options, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"x": x})
    assert outputs.dtype == answer.dtype == np.int32
    assert outputs.shape == (1, 24, 7, 7)
    assert np.array_equal(outputs, answer)
    assert len(np.unique(answer)) > 1000


def test_no_pair_of_products_leaves_sixteen_bits(tmp_path: Path) -> None:
    write_known_answer(tmp_path / "known-answer.onnx", opset=13)
    model = onnx.load(tmp_path / "known-answer.onnx")
    weights = onnx.numpy_helper.to_array(model.graph.initializer[0]).astype(int)
    assert 2 * 255 * np.abs(weights).max() <= np.iinfo(np.int16).max
    assert np.abs(weights).max() > 60
    assert model.opset_import[0].version == 13


def test_the_file_is_the_same_each_time(tmp_path: Path) -> None:
    first, again = (write_known_answer(tmp_path / name, opset=13) for name in ("a.onnx", "b.onnx"))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
