"""Squeeze-and-excitation stays in INT8, in the families that have it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bundler.graphs.exporter import export_onnx
from bundler.models.quantizable_blocks import QuantizableSqueezeExcitation
from bundler.models.registry import find_model, load_parser
from bundler.quantization import calibrate, convert, quantized_engine
from bundler.targets import TargetProfile


@pytest.mark.parametrize(("name", "blocks"), [("mobilenet_v3_small", 9), ("efficientnet_b0", 16)])
def test_every_gate_is_quantized_and_nothing_is_left_in_float(
    name: str,
    blocks: int,
    target: TargetProfile,
    weights_of: Callable[[str], Mapping[str, Tensor]],
    calibration: Tensor,
    golden: Tensor,
    tmp_path: Path,
) -> None:
    parser = load_parser(find_model(name)[1])
    prepared = parser(weights=weights_of(name), num_classes=10, quantize=True, target=target.quantization)
    calibrate(prepared, [calibration])
    converted = convert(prepared, target.quantization)
    gates = [module for module in converted.modules() if isinstance(module, QuantizableSqueezeExcitation)]
    assert len(gates) == blocks
    with quantized_engine(target.quantization.engine):
        for gate in gates:
            channels = gate.fc1.in_channels
            image = torch.quantize_per_tensor(torch.rand(1, channels, 4, 4), 1 / 255, 0, torch.quint8)
            scaled = gate(image)
            assert scaled.is_quantized
            assert (scaled.q_scale(), scaled.q_zero_point()) == (gate.skip_mul.scale, gate.skip_mul.zero_point)
        graph = export_onnx(converted, golden[:2], tmp_path / "int8.onnx", opset=13, quantized=True)
    assert graph.float_operators == {}
