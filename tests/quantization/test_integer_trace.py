"""The integers of torch and of the instrumented graph: the same tensors in the same order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from bundler.graphs.exporter import export_onnx
from bundler.graphs.instrumentation import instrument, sizes_of
from bundler.graphs.serialization import to_proto
from bundler.models.registry import find_model, load_parser
from bundler.quantization import calibrate, convert, quantized_engine, trace_integers
from bundler.targets import find_target


@pytest.mark.parametrize("target", ["x86", "arm64"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "densenet121"])
def test_torch_and_onnx_runtime_have_the_same_tensors_in_the_same_order(
    name: str,
    target: str,
    weights_of: Callable[[str], Mapping[str, Tensor]],
    calibration: Tensor,
    golden: Tensor,
    tmp_path: Path,
) -> None:
    profile = find_target(target).quantization
    prepared = load_parser(find_model(name)[1])(weights=weights_of(name), num_classes=10, quantize=True, target=profile)
    calibrate(prepared, calibration.split(8))
    converted = convert(prepared, profile)
    with quantized_engine(profile.engine), torch.no_grad():
        before = converted(golden[:1]).numpy()
        traced = trace_integers(converted, golden[:1])
        graph = export_onnx(converted, golden[:2], tmp_path / "graph.onnx", opset=13, quantized=True)
    assert graph.model is not None
    tensors = instrument(to_proto(graph.model), tmp_path / "instrumented.onnx")
    *integers, last = traced  # torch rounds its logits; the graph gives them as they are
    assert len(tensors) == len(integers) == graph.quantize_nodes > 30
    assert [item.values.size for item in integers] == list(sizes_of(tmp_path / "instrumented.onnx", golden[:1].numpy()))
    assert len({tensor.layer for tensor in tensors}) == len(tensors)
    assert tensors[0].layer == "quant"

    def run(path: Path) -> list[Any]:
        return list(ort.InferenceSession(path).run(None, {"image": golden[:1].numpy()}))

    outputs, *values = run(tmp_path / "instrumented.onnx")
    assert np.array_equal(outputs, run(graph.path)[0])
    assert np.array_equal(values[0].reshape(-1), integers[0].values.reshape(-1))  # the quantized image
    assert np.array_equal((last.values.astype(np.float32) - last.zero_point) * np.float32(last.scale), before)
    near = [np.abs(a.reshape(-1).astype(int) - b.values.reshape(-1)).mean() for a, b in zip(values, integers, strict=True)]
    # Torch and ONNX Runtime round some values differently by one step; different tensors would differ by dozens of steps.
    assert max(near[:10]) < 1, near
