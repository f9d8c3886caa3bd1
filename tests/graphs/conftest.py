"""MobileNetV2 exported once, in float and for each target in INT8, with torch's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bundler.graphs.exported_graph import ExportedGraph
from bundler.graphs.exporter import export_onnx
from bundler.models.mobilenet_v2 import mobilenet_v2
from bundler.quantization import calibrate, convert, quantized_engine
from bundler.targets import TargetProfile, find_target


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A graph, its torch model, and the outputs of that and of the float model on the golden inputs."""

    graph: ExportedGraph
    model: nn.Module
    target: TargetProfile
    torch_outputs: NDArray[np.float32]
    fp32_outputs: NDArray[np.float32]


@pytest.fixture(scope="session")
def fp32(
    weights_of: Callable[[str], Mapping[str, Tensor]], golden: Tensor, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    model = mobilenet_v2(weights=weights_of("mobilenet_v2"), num_classes=10)
    with torch.inference_mode():
        outputs = model(golden).numpy()
    path = tmp_path_factory.mktemp("exported") / "fp32.onnx"
    graph = export_onnx(model, golden[:2], path, opset=13, quantized=False)
    return Exported(graph=graph, model=model, target=find_target("x86"), torch_outputs=outputs, fp32_outputs=outputs)


@pytest.fixture(scope="session", params=["x86", "arm64"])
def int8(
    request: pytest.FixtureRequest,
    weights_of: Callable[[str], Mapping[str, Tensor]],
    fp32: Exported,
    calibration: Tensor,
    golden: Tensor,
    tmp_path_factory: pytest.TempPathFactory,
) -> Exported:
    target = find_target(request.param)
    prepared = mobilenet_v2(weights=weights_of("mobilenet_v2"), num_classes=10, quantize=True, target=target.quantization)
    calibrate(prepared, calibration.split(8))
    converted = convert(prepared, target.quantization)
    path = tmp_path_factory.mktemp("exported") / "int8.onnx"
    with quantized_engine(target.quantization.engine):
        with torch.inference_mode():
            outputs = converted(golden).numpy()
        graph = export_onnx(converted, golden[:2], path, opset=13, quantized=True)
    return Exported(graph=graph, model=converted, target=target, torch_outputs=outputs, fp32_outputs=fp32.torch_outputs)
