"""SiLU, Hardswish, Mish and global average pooling: equal to torch's modules in float, and accurate in INT8."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bundler.models.registry import find_model, load_parser
from bundler.quantization import (
    DeQuantStub,
    QuantStub,
    calibrate,
    convert,
    load_fuse_prepare,
    make_quantizable,
    quantized_engine,
)
from bundler.quantization.quantizable_modules import (
    QuantizableGlobalAverage,
    QuantizedGlobalAverage,
    QuantizedHardswish,
    QuantizedMish,
    QuantizedOperator,
    QuantizedSiLU,
)
from bundler.targets import TargetProfile

RANGE = 8.0  # outside of it the functions are 0 or x, to three digits


class Activated(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.quant, self.activation, self.dequant = QuantStub(), activation, DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.dequant(self.activation(self.quant(x)))
        return activated

    def fuse_model(self, is_qat: bool | None = None) -> None:
        """There is nothing to fuse."""


ACTIVATIONS = pytest.mark.parametrize("activation", [nn.SiLU, nn.Hardswish, nn.Mish])


@ACTIVATIONS
def test_the_float_form_equals_torchs_module_bit_for_bit(activation: type[nn.Module]) -> None:
    model = Activated(activation())
    plain = Activated(activation())
    make_quantizable(model)
    assert type(model.activation) is not activation
    assert model.state_dict().keys() == plain.state_dict().keys()
    values = torch.linspace(-20, 20, 10_001)
    assert torch.equal(model(values), plain(values))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")  # deprecation
@ACTIVATIONS
def test_the_int8_form_approximates_the_function_of_the_dequantized_input(
    activation: type[nn.Module], target: TargetProfile
) -> None:
    model = Activated(activation())
    make_quantizable(model)
    load_fuse_prepare(model, None, quantize=True, is_qat=False, target=target.quantization)
    values = torch.linspace(-RANGE, RANGE, 4_001)
    calibrate(model, [values])
    converted: Any = convert(model, target.quantization)
    with quantized_engine(target.quantization.engine):
        answers = converted(values)
        read = converted.quant(values).dequantize()
    wanted = activation()(read)
    step = converted.activation.scale
    # Mish is a lookup table. The others multiply by a gate with the scale 1/256 and the maximum 255/256.
    allowed = 0.5 if activation is nn.Mish else 0.5 + RANGE / 256 / step
    assert float((answers - wanted).abs().max()) <= step * (allowed + 1e-3)
    assert answers.unique().numel() > 60  # of 128 or 256 values


def test_subclasses_are_not_replaced() -> None:
    class Own(nn.SiLU):
        pass

    model = nn.Sequential(Own(), nn.ReLU(), nn.Sequential(nn.SiLU()))
    make_quantizable(model)
    assert [type(module) for module in list(model)[:2]] == [Own, nn.ReLU]
    assert type(model[2][0]) is not nn.SiLU  # type: ignore[index]


def test_only_global_average_pooling_is_replaced() -> None:
    pools = [nn.AdaptiveAvgPool2d(size) for size in (1, (1, 1), 7, (1, 2))]
    model = nn.Sequential(*pools)
    make_quantizable(model)
    assert [type(child) is QuantizableGlobalAverage for child in model] == [True, True, False, False]
    x = torch.rand(2, 3, 5, 4)
    assert torch.equal(model[0](x), pools[0](x))


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v3_small", "efficientnet_b0"])
def test_global_averages_have_a_smaller_scale_than_their_inputs(
    name: str, weights_of: Callable[[str], Mapping[str, Tensor]], target: TargetProfile, calibration: Tensor
) -> None:
    prepared = load_parser(find_model(name)[1])(
        weights=weights_of(name), num_classes=10, quantize=True, target=target.quantization
    )
    calibrate(prepared, calibration.split(8))
    converted = convert(prepared, target.quantization)
    pools = {part for part, module in converted.named_modules() if isinstance(module, QuantizedGlobalAverage)}
    assert "avgpool" in pools
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for part in pools:
        converted.get_submodule(part).register_forward_hook(
            lambda _module, inputs, output, part=part: seen.update({part: (inputs[0], output)})
        )
    with quantized_engine(target.quantization.engine), torch.inference_mode():
        converted(calibration[:4])
    for part in pools:
        given, mean = seen[part]
        wanted = given.dequantize().mean((2, 3), keepdim=True)
        low, high = (float((bound - mean.q_zero_point()) * mean.q_scale()) for bound in (0, 255))
        assert float((mean.dequantize() - wanted.clamp(low, high)).abs().max()) <= 0.501 * mean.q_scale()
        assert mean.q_scale() <= given.q_scale() * 1.001
    assert any(seen[part][1].q_scale() < 0.95 * seen[part][0].q_scale() for part in pools)


KINDS = (QuantizedGlobalAverage, QuantizedHardswish, QuantizedMish, QuantizedSiLU)


@pytest.mark.parametrize("kind", KINDS)
def test_scale_and_zero_point_are_part_of_the_state_dict(kind: type[QuantizedOperator]) -> None:
    scale = float(torch.tensor(0.0371))
    model, other = nn.Sequential(kind(scale, 57)), nn.Sequential(kind(1.0, 0))
    state_dict = model.state_dict()
    assert list(state_dict) == ["0.scale", "0.zero_point"]
    assert (state_dict["0.scale"].dtype, state_dict["0.zero_point"].dtype) == (torch.float32, torch.int64)
    other.load_state_dict(state_dict)
    loaded: Any = other[0]
    assert (loaded.scale, loaded.zero_point) == (scale, 57)


@pytest.mark.parametrize("lacking", ["scale", "zero_point"])
def test_a_state_dict_without_scale_or_zero_point_is_rejected(lacking: str) -> None:
    model = nn.Sequential(QuantizedSiLU(0.5, 3))
    state_dict = model.state_dict()
    del state_dict[f"0.{lacking}"]
    with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: "0\.{lacking}"'):
        model.load_state_dict(state_dict)
    model.load_state_dict(state_dict, strict=False)
