"""Clamped observers before ReLU6, Hardswish and Hardsigmoid: in float, INT8, QAT and the exported graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from bundler.device.numerics import informative_problem
from bundler.graphs.exporter import export_onnx
from bundler.models.mobilenet_v2 import mobilenet_v2
from bundler.quantization import calibrate, convert, quantized_engine
from bundler.quantization.clipping import QuantizableReLU6, clip_observers
from bundler.quantization.qconfig import torch_qconfig
from bundler.quantization.quantizable_modules import QuantizableHardswish
from bundler.targets import TargetProfile, find_target

import torchvision

RELU6_LAYERS = 35  # in MobileNetV2: after the first and last convolution, 16 expansions and 17 depthwise convolutions


@pytest.fixture(params=["x86", "arm64", "profile"], scope="module")
def target(request: pytest.FixtureRequest, without_options: Callable[[TargetProfile], TargetProfile]) -> TargetProfile:
    """Torch's default qconfigs, of which fbgemm's has 7-bit activations, and a profile with 8-bit activations."""
    if request.param == "profile":
        return find_target("x86")
    return without_options(find_target(request.param))


def _seven_bits(target: TargetProfile) -> bool:
    return target.quantization.qconfig == "fbgemm" and "8-bit-activations" not in target.quantization.options


@pytest.fixture(scope="module")
def scaled_weights(weights_of: Callable[[str], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Weights with which every ReLU6 clips many values: each BatchNorm before one is scaled by 4."""
    weights = {key: value.clone() for key, value in weights_of("mobilenet_v2").items()}
    for name, module in torchvision.models.mobilenet_v2().named_modules():
        children = list(module.named_children()) if isinstance(module, nn.Sequential) else []
        for (norm, layer), (_, reader) in pairwise(children):
            if isinstance(layer, nn.BatchNorm2d) and isinstance(reader, nn.ReLU6):
                weights[f"{name}.{norm}.weight"] *= 4
                weights[f"{name}.{norm}.bias"] *= 4
    return weights


@pytest.fixture(scope="module")
def prepared(scaled_weights: dict[str, Tensor], target: TargetProfile, calibration: Tensor) -> nn.Module:
    model = mobilenet_v2(weights=scaled_weights, num_classes=10, quantize=True, target=target.quantization)
    calibrate(model, calibration.split(8))
    return model


@pytest.fixture(scope="module")
def converted(prepared: nn.Module, target: TargetProfile) -> nn.Module:
    return convert(prepared, target.quantization)


def test_the_float_model_equals_torchvisions_float_model(scaled_weights: dict[str, Tensor], golden: Tensor) -> None:
    plain = torchvision.models.mobilenet_v2(num_classes=10).eval()
    plain.load_state_dict(scaled_weights)
    with_relu = torchvision.models.quantization.mobilenet_v2(num_classes=10).eval()
    with_relu.load_state_dict(scaled_weights)
    with torch.inference_mode():
        expected = plain(golden)
        assert informative_problem(expected.numpy()) == ""
        assert torch.equal(mobilenet_v2(weights=scaled_weights, num_classes=10)(golden), expected)
        # torchvision's quantizable model has ReLU instead of ReLU6.
        assert not torch.allclose(with_relu(golden), expected, rtol=0.1)


def clipped_convolutions(model: nn.Module) -> list[Any]:
    """Return the layer before each ReLU6, without the Identity modules of fusing."""
    sequences = [
        [layer for layer in module if type(layer) is not nn.Identity]
        for module in model.modules()
        if isinstance(module, nn.Sequential)
    ]
    return [layer for layers in sequences for layer, reader in pairwise(layers) if isinstance(reader, QuantizableReLU6)]


def clipped_observers(model: nn.Module) -> list[Any]:
    return [
        module.activation_post_process
        for module in model.modules()
        if hasattr(module, "activation_post_process") and type(module.activation_post_process).__name__.startswith("Clipped")
    ]


def test_the_range_before_each_relu6_ends_at_6(prepared: nn.Module, converted: nn.Module, target: TargetProfile) -> None:
    assert [float(observer.max_val) for observer in clipped_observers(prepared)] == [6.0] * RELU6_LAYERS
    convolutions = clipped_convolutions(converted)
    assert len(convolutions) == RELU6_LAYERS
    steps = 127 if _seven_bits(target) else 255
    for convolution in convolutions:
        assert convolution.zero_point == 0
        assert convolution.scale <= 6 / steps * (1 + 1e-6)  # float32's rounding of the quotient


def test_int8_values_do_not_exceed_6(converted: nn.Module, target: TargetProfile, golden: Tensor) -> None:
    before: list[float] = []
    excess: list[float] = []

    def record(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        before.append(float(inputs[0].dequantize().max()))
        excess.append(float(output.dequantize().max()) - 6 - output.q_scale() / 2)

    layers = [module for module in converted.modules() if isinstance(module, QuantizableReLU6)]
    assert len(layers) == RELU6_LAYERS
    for layer in layers:
        layer.register_forward_hook(record)
    with quantized_engine(target.quantization.engine), torch.inference_mode():
        converted(golden * 8)  # outside of the observed ranges
    assert len(excess) == RELU6_LAYERS
    assert max(excess) <= 0
    # 7-bit activations can represent values up to 12, which are clipped. The range of 8-bit activations ends at 6.
    assert (max(before) > 6.1) == (_seven_bits(target))


def test_the_graph_clips_integers_only_if_the_range_does_not_end_at_6(
    converted: nn.Module, target: TargetProfile, golden: Tensor, tmp_path: Path
) -> None:
    with quantized_engine(target.quantization.engine):
        graph = export_onnx(converted, golden[:2], tmp_path / "int8.onnx", opset=13, quantized=True)
    model = onnx.load(graph.path).graph
    producer = {name: node for node in model.node for name in node.output}
    readers = {name: [node for node in model.node if name in node.input] for name in producer}
    clips = [node for node in model.node if node.op_type == "Clip"]
    assert len(clips) == (RELU6_LAYERS if _seven_bits(target) else 0)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.initializer}
    for clip in clips:
        quantize, dequantizers = producer[clip.input[0]], readers[clip.output[0]]
        assert quantize.op_type == "QuantizeLinear"
        assert {node.op_type for node in dequantizers} == {"DequantizeLinear"}
        low, high = (constants[name] for name in clip.input[1:])
        assert low.dtype == high.dtype == "uint8"
        scale = constants[quantize.input[1]]
        assert low == 0
        assert abs(high * scale - 6) <= scale / 2
    assert not {"Clip", "Relu"} & graph.float_operators.keys()


@pytest.mark.parametrize(("scale", "zero_point"), [(6 / 127, 0), (6 / 255, 0), (0.05, 10), (3 / 127, 0), (12 / 255, 0)])
def test_relu6_of_a_quantized_tensor_is_relu6_of_its_values(scale: float, zero_point: int, target: TargetProfile) -> None:
    integers = torch.arange(256, dtype=torch.uint8)
    tensor = torch._make_per_tensor_quantized_tensor(integers, scale, zero_point)
    with quantized_engine(target.quantization.engine):
        clipped = QuantizableReLU6()(tensor)
    wanted = nn.functional.relu6(tensor.dequantize())  # 6 may be between two quantized values
    assert float((clipped.dequantize() - wanted).abs().max()) <= scale / 2 * (1 + 1e-5)


def test_qat_clamps_the_observed_ranges(
    scaled_weights: dict[str, Tensor], target: TargetProfile, calibration: Tensor, golden: Tensor
) -> None:
    model = mobilenet_v2(weights=scaled_weights, num_classes=10, quantize=True, is_qat=True, target=target.quantization)
    model(calibration[:4])
    fakes = clipped_observers(model)
    assert len(fakes) == RELU6_LAYERS
    for fake in fakes:
        scale, zero_point = fake.calculate_qparams()
        assert int(zero_point) == 0
        assert float(scale) <= 6 / (127 if _seven_bits(target) else 255) * (1 + 1e-6)
    converted = convert(model, target.quantization)
    outputs: list[Tensor] = []
    for module in converted.modules():
        if isinstance(module, QuantizableReLU6):
            module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with quantized_engine(target.quantization.engine), torch.inference_mode():
        converted(golden * 8)
    assert len(outputs) == RELU6_LAYERS
    assert all(float(output.dequantize().max()) <= 6 + output.q_scale() / 2 for output in outputs)


class Chain(nn.Module):
    """A module that is not a Sequential and has a `chain`."""

    chain = ("conv", "gate")

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate
        self.conv = nn.Conv2d(1, 1, 1)


# Torch's default qconfig uses `reduce_range`, for which its observers emit a warning.
@pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning")
@pytest.mark.parametrize("arrange", [Chain, lambda gate: nn.Sequential(nn.Conv2d(1, 1, 1), nn.Identity(), gate)])
@pytest.mark.parametrize(
    ("activation", "low", "high"),
    [(nn.ReLU6, 0, 6), (QuantizableHardswish, -3, 20), (nn.Hardsigmoid, -3, 3), (nn.ReLU, -20, 20)],
)
def test_the_observed_range_is_clamped_to_the_interval_of_the_activation(
    arrange: Callable[[nn.Module], nn.Module], activation: type[nn.Module], low: float, high: float, target: TargetProfile
) -> None:
    model = arrange(activation())
    model.qconfig = qconfig = torch_qconfig(target.quantization, is_qat=False)  # type: ignore[assignment]
    clip_observers(model)
    convolution = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    observer = getattr(convolution, "qconfig", qconfig).activation()
    observer(torch.linspace(-20, 20, 400))
    assert (float(observer.min_val), float(observer.max_val)) == (low, high)
