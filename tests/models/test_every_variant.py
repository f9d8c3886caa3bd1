"""What holds for every variant that is built: the specification's promises, from the float model to ONNX Runtime's INT8."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bundler.export.agreement import informative_problem, sqnr_db
from bundler.export.onnx_export import export_onnx
from bundler.export.reference import agree_with_torch, run_reference
from bundler.models import torchvision_operators  # noqa: F401  before torchvision
from bundler.models.initialization import random_state_dict
from bundler.models.registry import find_model, load_parser, models
from bundler.quantization import DeQuantStub, QuantStub, calibrate, convert, quantized_engine
from bundler.targets import TargetProfile, find_target, load_targets

import torchvision

BUILT = [name for name, (row, _) in models().items() if row.built]

# A folded BatchNorm rounds differently: about 2^-24 (-144 dB) for each of up to 150 layers, amplified by those behind it.
# Measured: 98 to 111 dB.
FLOAT_ROUNDING_DB = 80.0
# INT8 of an untrained network at 64 pixels reaches 11 to 20 dB. At 6 dB, noise has half the signal's amplitude: a wrong scale.
INT8_FLOOR_DB = 6.0


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A variant's parser, torchvision's plain model with the same weights, and what that one answers on the golden pictures."""

    name: str
    parser: Callable[..., Any]
    plain: nn.Module
    state_dict: Mapping[str, Tensor]
    reference: NDArray[np.float32]

    def build(self, **kwargs: Any) -> Any:
        return self.parser(weights=self.state_dict, num_classes=10, **kwargs)


@pytest.fixture(scope="module", params=BUILT)
def variant(request: pytest.FixtureRequest, calibration: Tensor, golden: Tensor) -> Variant:
    name = request.param
    plain = getattr(torchvision.models, name)(num_classes=10)
    state_dict = random_state_dict(lambda: plain, calibration, seed=0)
    reference = outputs_of(plain.eval(), golden)
    return Variant(name=name, parser=load_parser(*find_model(name)), plain=plain, state_dict=state_dict, reference=reference)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that goes at once: the graphs of all variants together are gigabytes."""
    with TemporaryDirectory() as name:
        yield Path(name)


def outputs_of(model: nn.Module, pictures: Tensor) -> NDArray[np.float32]:
    with torch.inference_mode():
        return model(pictures).numpy()


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def test_float_model_is_torchvisions_bit_for_bit(variant: Variant, golden: Tensor, folder: Path) -> None:
    assert informative_problem(variant.reference) == ""
    model = variant.build()
    ours, theirs = model.state_dict(), variant.plain.state_dict()
    assert list(ours) == list(theirs)
    assert [value.shape for value in ours.values()] == [value.shape for value in theirs.values()]
    assert isinstance(model, type(variant.plain))
    assert type(model).__name__ == f"Quantizable{type(variant.plain).__name__}"
    assert isinstance(model.quant, QuantStub)
    assert isinstance(model.dequant, DeQuantStub)
    assert not model.training
    outputs = outputs_of(model, golden)
    assert np.array_equal(outputs, variant.reference)

    profile = find_target("x86").export
    graph = export_onnx(model, golden[:2], folder / "fp32.onnx", opset=profile.opset, quantized=False)
    assert (graph.opset, graph.quantize_nodes, graph.dequantize_nodes, graph.output_step) == (13, 0, 0, None)
    exported = run_reference(graph, golden.numpy(), "all")
    agree_with_torch(graph, exported, torch_outputs=outputs, fp32_outputs=outputs, profile=profile)


@pytest.mark.parametrize("target", load_targets(), ids=lambda target: target.name, scope="function")
def test_post_training_quantization(
    variant: Variant, target: TargetProfile, calibration: Tensor, golden: Tensor, folder: Path
) -> None:
    engine = torch.backends.quantized.engine
    model = variant.build(quantize=True, target=target.quantization)
    assert not model.training
    assert len(batch_norms(model)) < len(batch_norms(variant.plain))
    assert sqnr_db(variant.reference, outputs_of(model, golden)) > FLOAT_ROUNDING_DB

    assert calibrate(model, calibration.split(8)) == len(calibration)
    converted = convert(model, target.quantization)
    assert torch.backends.quantized.engine == engine
    assert sqnr_db(variant.reference, outputs_of(model, golden)) > FLOAT_ROUNDING_DB  # the prepared model stays a float model
    with quantized_engine(target.quantization.engine):
        int8 = outputs_of(converted, golden)
        graph = export_onnx(converted, golden[:2], folder / "int8.onnx", opset=target.export.opset, quantized=True)
    assert torch.backends.quantized.engine == engine
    assert informative_problem(int8) == ""
    assert INT8_FLOOR_DB < sqnr_db(variant.reference, int8) < FLOAT_ROUNDING_DB

    assert graph.opset == 13
    assert graph.quantize_nodes > 0
    assert graph.dequantize_nodes > 0
    assert not {"Conv", "FusedConv", "Gemm", "MatMul"} & graph.float_operators.keys()
    assert graph.bytes < 0.3 * 4 * sum(value.numel() for value in variant.state_dict.values())  # weights are one byte each
    outputs = run_reference(graph, golden.numpy(), target.runtime.graph_optimization_level)
    agree_with_torch(graph, outputs, torch_outputs=int8, fp32_outputs=variant.reference, profile=target.export)
    assert sqnr_db(variant.reference, outputs) > INT8_FLOOR_DB


def test_quantization_aware_training(variant: Variant, calibration: Tensor, golden: Tensor) -> None:
    """On one engine here, to save time; `tests/quantization/test_training.py` trains on both and exports."""
    profile = find_target("x86").quantization
    model = variant.build(quantize=True, is_qat=True, target=profile)
    assert model.training
    assert len(batch_norms(model)) == len(batch_norms(variant.plain))
    assert all(norm.training for norm in batch_norms(model))

    model.apply(torch.ao.quantization.disable_fake_quant).eval()
    assert sqnr_db(variant.reference, outputs_of(model, golden)) > FLOAT_ROUNDING_DB
    model.apply(torch.ao.quantization.enable_fake_quant).train()

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for batch in calibration[:8].split(4):
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(batch), torch.arange(4))
        loss.backward()
        assert torch.isfinite(loss)
        optimizer.step()
        assert gradient_problems(model) == []

    converted = convert(model, profile)
    with quantized_engine(profile.engine):
        assert informative_problem(outputs_of(converted, golden)) == ""


def gradient_problems(model: nn.Module) -> list[str]:
    """Name each parameter that a step would not train."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and (parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any())
    ]
