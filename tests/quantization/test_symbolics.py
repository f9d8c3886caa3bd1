"""ONNX symbolics of quantized operators: ONNX Runtime and torch agree for each of the 256 inputs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from bundler.graphs.exporter import export_onnx
from bundler.graphs.host_runs import run_reference
from bundler.quantization import (
    DeQuantStub,
    QuantStub,
    calibrate,
    convert,
    load_fuse_prepare,
    make_quantizable,
    quantized_engine,
)
from bundler.targets import TargetProfile


class Network(nn.Module):
    """An activation between two convolutions, the first of which is the identity."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.before, self.activation, self.after = nn.Conv2d(1, 1, 1), activation, nn.Conv2d(1, 10, 1)
        self.before.weight.data.fill_(1.0)
        self.before.bias.data.zero_()  # type: ignore[union-attr]
        make_quantizable(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.dequant(self.after(self.activation(self.before(self.quant(x)))).flatten(1))
        return logits

    def fuse_model(self, is_qat: bool | None = None) -> None:
        """There is nothing to fuse."""


@pytest.mark.parametrize(
    ("activation", "written"),
    [
        (nn.SiLU, {"Sigmoid": 1, "Mul": 1}),
        (nn.Hardswish, {"Add": 1, "Mul": 1}),
        (nn.Hardsigmoid, {"Add": 1}),
        (nn.Mish, {"Cast": 1, "GatherElements": 1}),
    ],
)
def test_onnx_runtime_agrees_with_torch_for_every_input(
    activation: type[nn.Module], written: dict[str, int], target: TargetProfile, tmp_path: Path
) -> None:
    model = Network(activation())
    load_fuse_prepare(model, None, quantize=True, is_qat=False, target=target.quantization)
    images = torch.linspace(-8, 8, 512).reshape(-1, 1, 1, 1)  # one value each, for every integer of the quantized input
    calibrate(model, [images])
    converted: Any = convert(model, target.quantization)
    with quantized_engine(target.quantization.engine), torch.inference_mode():
        wanted = converted(images).numpy()
        inputs = converted.quant(images).int_repr().unique()
        graph = export_onnx(converted, images[:2], tmp_path / "int8.onnx", opset=13, quantized=True)
    assert len(inputs) >= 127
    operators = Counter(node.op_type for node in onnx.load(graph.path).graph.node)
    assert {name: operators[name] for name in written} == written
    assert "HardSigmoid" not in operators
    assert graph.float_operators == {}
    answers = run_reference(graph, images.numpy(), target.runtime.graph_optimization_level)
    assert graph.output_step is not None
    steps = np.abs(answers - wanted).max() / graph.output_step
    # One rounding step in the activation, and one in the last convolution, whose weights are 1 at most.
    assert steps <= 2.01
    assert len(np.unique(wanted)) > 40
