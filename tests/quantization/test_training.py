"""Quantization-aware training on both engines, from the parser to ONNX Runtime; all variants train in `tests/models`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bundler.graphs.comparison import informative_problem, sqnr_db
from bundler.graphs.exporter import export_onnx
from bundler.graphs.host_runs import agree_with_torch, run_reference
from bundler.models.registry import find_model, load_parser
from bundler.quantization import convert, quantized_engine
from bundler.targets import TargetProfile


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small"])
def test_a_trained_model_is_converted_and_exported(
    name: str,
    target: TargetProfile,
    weights_of: Callable[[str], Mapping[str, Tensor]],
    calibration: Tensor,
    golden: Tensor,
    tmp_path: Path,
) -> None:
    parser = load_parser(find_model(name)[1])
    # build full-precision model and prepare for QAT
    model = parser(weights=weights_of(name), num_classes=10, quantize=True, is_qat=True, target=target.quantization)
    before = {key: value.clone() for key, value in model.named_parameters()}
    statistics = {key: value.clone() for key, value in model.named_buffers() if key.endswith("running_mean")}
    labels = torch.arange(8)

    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # what it leaves out moves the loss by as much as four steps do
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(4):
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(calibration[:8]), labels)
        loss.backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.any(), key
        optimizer.step()
        losses.append(loss.item())
    assert torch.tensor(losses).isfinite().all()
    assert losses[-1] < losses[0] - 0.1  # measured with four seeds: 0.46 to 2.4 less
    # Of the weights at least one number each; a single bias near 1 may round to where it was.
    assert [
        key for key, parameter in model.named_parameters() if parameter.ndim > 1 and torch.equal(parameter, before[key])
    ] == []
    buffers = dict(model.named_buffers())
    assert statistics
    assert all(not torch.equal(buffers[key], value) for key, value in statistics.items())

    model.eval()
    with torch.inference_mode():
        trained = model(golden).numpy()
    converted = convert(model, target.quantization)
    with quantized_engine(target.quantization.engine):
        with torch.inference_mode():
            int8 = converted(golden).numpy()
        graph = export_onnx(converted, golden[:2], tmp_path / "int8-qat.onnx", opset=target.export.opset, quantized=True)
    assert informative_problem(int8) == ""
    # The reference is the fake-quantized network, and INT8 differs from it by its rounding; measured: 18 to 31 dB.
    assert sqnr_db(trained, int8) > 4
    outputs = run_reference(graph, golden.numpy(), target.runtime.graph_optimization_level)
    agree_with_torch(graph, outputs, torch_outputs=int8, fp32_outputs=trained, profile=target.export)
