"""`trace`: the outputs and tensors of an instrumented graph."""

from __future__ import annotations

import base64
import io

import numpy as np

from bundler.device.tracing import OUTPUTS, VALUES, sampled

from .conftest import TinyBundle, outputs_of


def test_trace_prints_the_outputs_of_a_graph(bundle: TinyBundle) -> None:
    model, inputs = bundle.root / "models/fp32.onnx", bundle.root / "golden/inputs.npy"
    done = bundle.run("trace", str(model), str(inputs), "all", "2")
    assert done.returncode == 0, done.stderr
    arrays = np.load(io.BytesIO(base64.b64decode(done.stdout)))
    assert arrays.files == [OUTPUTS]
    np.testing.assert_array_equal(arrays[OUTPUTS], outputs_of(model, np.load(inputs)[:2]))


def test_trace_names_what_it_cannot_use(bundle: TinyBundle) -> None:
    model, inputs = str(bundle.root / "models/fp32.onnx"), str(bundle.root / "golden/inputs.npy")
    for arguments, code, words in (
        ((model, inputs, "most", "1"), 2, "invalid choice: 'most'"),
        ((model, model, "all", "1"), 2, f"{model} cannot be read"),
        ((inputs, inputs, "all", "1"), 4, "onnxruntime cannot run inputs.npy"),
    ):
        done = bundle.run("trace", *arguments)
        assert done.returncode == code
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_a_tensor_is_sampled_evenly() -> None:
    assert sampled(np.arange(10).reshape(2, 5)).tolist() == list(range(10))
    many = sampled(np.arange(3 * VALUES))
    assert many.tolist() == list(range(0, 3 * VALUES, 3))
