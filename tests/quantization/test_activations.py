"""SiLU, Hardswish and Mish: torch's own in float, and for each of the 256 inputs the nearest they can get to it in INT8."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

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

RANGE = 8.0  # beyond it the functions are zero or their input, to three digits


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
def test_in_float_it_is_torchs_own_bit_for_bit(activation: type[nn.Module]) -> None:
    model = Activated(activation())
    plain = Activated(activation())
    make_quantizable(model)
    assert type(model.activation) is not activation
    assert model.state_dict().keys() == plain.state_dict().keys()
    values = torch.linspace(-20, 20, 10_001)
    assert torch.equal(model(values), plain(values))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")  # torch announces their end, once
@ACTIVATIONS
def test_in_int8_it_is_the_function_of_what_the_integers_stand_for(activation: type[nn.Module], target: TargetProfile) -> None:
    model = Activated(activation())
    make_quantizable(model)
    load_fuse_prepare(model, None, quantize=True, is_qat=False, target=target.quantization)
    values = torch.linspace(-RANGE, RANGE, 4_001)
    calibrate(model, [values])
    converted = convert(model, target.quantization)
    with quantized_engine(target.quantization.engine):
        answers = converted(values)
        read = converted.quant(values).dequantize()
    wanted = activation()(read)
    step = converted.activation.scale
    # Mish is a table. The others multiply by a gate in steps of 1/256, whose highest is 255/256.
    allowed = 0.5 if activation is nn.Mish else 0.5 + RANGE / 256 / step
    assert float((answers - wanted).abs().max()) <= step * (allowed + 1e-3)
    assert answers.unique().numel() > 60  # of 128 or 256: the range is used


def test_only_exact_types_are_replaced() -> None:
    class Own(nn.SiLU):
        pass

    model = nn.Sequential(Own(), nn.ReLU(), nn.Sequential(nn.SiLU()))
    make_quantizable(model)
    assert [type(module) for module in model[:2]] == [Own, nn.ReLU]
    assert type(model[2][0]) is not nn.SiLU  # type: ignore[index]
