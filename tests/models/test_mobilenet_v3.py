from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from bundler.export.onnx_export import export_onnx
from bundler.models.mobilenet_v3 import QuantizableSqueezeExcitation, mobilenet_v3_small
from bundler.quantization import calibrate, convert, quantized_engine
from bundler.targets import TargetProfile


def test_squeeze_and_excitation_is_quantized(
    target: TargetProfile,
    weights_of: Callable[[str], Mapping[str, Tensor]],
    calibration: Tensor,
    golden: Tensor,
    tmp_path: Path,
) -> None:
    weights = weights_of("mobilenet_v3_small")
    prepared = mobilenet_v3_small(weights=weights, num_classes=10, quantize=True, target=target.quantization)
    calibrate(prepared, [calibration])
    converted = convert(prepared, target.quantization)
    gates = [module for module in converted.modules() if isinstance(module, QuantizableSqueezeExcitation)]
    assert len(gates) == 9
    with quantized_engine(target.quantization.engine):
        for gate in gates:
            channels = gate.fc1.in_channels
            image = torch.quantize_per_tensor(torch.rand(1, channels, 4, 4), 1 / 255, 0, torch.quint8)
            scaled = gate(image)
            assert scaled.is_quantized
            assert (scaled.q_scale(), scaled.q_zero_point()) == (gate.skip_mul.scale, gate.skip_mul.zero_point)
        graph = export_onnx(converted, golden[:2], tmp_path / "int8.onnx", opset=13, quantized=True)
    # ONNX Runtime has no integer HardSigmoid; HardSwish is one times its input. Nothing else is left in float.
    assert graph.float_operators.keys() == {"HardSigmoid", "Mul"}
    assert graph.float_operators["HardSigmoid"] == 19 + 9
