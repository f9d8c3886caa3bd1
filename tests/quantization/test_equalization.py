"""Channels brought to one size: the same function bit for bit, and INT8 that no longer collapses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from bundler.export.agreement import sqnr_db
from bundler.models.registry import find_model, load_parser
from bundler.quantization import calibrate, convert, equalize_channels, quantized_engine
from bundler.quantization.equalization import channel_pairs
from bundler.targets import TargetProfile

# Two in a basic block are one pair, three in a bottleneck two; in DenseNet's every layer BatchNorm, convolution and BatchNorm.
PAIRS = {"resnet18": 8, "resnet50": 32, "densenet121": 119, "mobilenet_v2": 2, "mobilenet_v3_small": 14}


def ill_scaled(model: nn.Module, sample: Tensor, *, seed: int = 0) -> nn.Module:
    """Multiply the channels between two layers by factors from 0.05 to 20, and divide by them behind (issue 4)."""
    generator = torch.Generator().manual_seed(seed)
    ill = copy.deepcopy(model)
    for pair in channel_pairs(ill, sample):
        factors = torch.exp(torch.empty(len(pair.producer.weight)).uniform_(-3, 3, generator=generator))
        for parameter in pair.producer.parameters():
            parameter.data *= factors.reshape(-1, *[1] * (parameter.ndim - 1))
        weight = pair.consumer.weight.data
        weight.view(pair.consumer.groups, -1, *weight.shape[1:]).div_(factors.reshape(pair.consumer.groups, 1, -1, 1, 1))
    return ill


@pytest.mark.parametrize(("name", "pairs"), PAIRS.items())
def test_every_pair_is_found_and_no_bit_changes(
    name: str, pairs: int, weights_of: Callable[[str], Mapping[str, Tensor]], golden: Tensor
) -> None:
    model = load_parser(find_model(name)[1])(weights=weights_of(name), num_classes=10)
    assert len(channel_pairs(model, golden[:1])) == pairs
    ill = ill_scaled(model, golden[:1])
    with torch.inference_mode():
        expected = ill(golden)
        before = {key: value.clone() for key, value in ill.state_dict().items()}
        assert equalize_channels(ill, golden[:1]) > 0
        assert torch.equal(ill(golden), expected)
    assert any(not torch.equal(before[key], value) for key, value in ill.state_dict().items())


@pytest.mark.parametrize("fused", [False, True])
def test_an_ill_scaled_network_is_as_good_as_before(
    fused: bool, weights_of: Callable[[str], Mapping[str, Tensor]], target: TargetProfile, calibration: Tensor, golden: Tensor
) -> None:
    parser = load_parser(find_model("resnet18")[1])
    plain = parser(weights=weights_of("resnet18"), num_classes=10)
    ill = ill_scaled(plain, golden[:1])
    if fused:
        ill.fuse_model(is_qat=False)  # type: ignore[operator]
    equal = copy.deepcopy(ill)
    equalize_channels(equal, golden[:1])

    def ratio(model: nn.Module) -> float:
        prepared = parser(weights=model.state_dict(), num_classes=10, quantize=True, target=target.quantization)
        calibrate(prepared, [calibration])
        converted = convert(prepared, target.quantization)
        with quantized_engine(target.quantization.engine), torch.inference_mode():
            return sqnr_db(plain(golden).numpy(), converted(golden).numpy())

    collapsed, saved, best = ratio(ill), ratio(equal), ratio(plain)
    assert collapsed < best - 5
    assert saved > best - 1.5


class Branch(nn.Module):
    """What lies between the first two is read twice, what follows through something else than a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.last = (nn.Conv2d(3, 3, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.second(torch.relu(x)) + x
        x = self.third(torch.sigmoid(x))
        x = self.last(nn.functional.relu6(x))
        return torch.as_tensor(self.last(x))  # its second run


def test_what_is_read_twice_clipped_or_run_twice_is_left_alone() -> None:
    model = Branch().eval()
    assert channel_pairs(model, torch.rand(1, 3, 4, 4)) == ()


def test_channels_of_zero_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    model[0].weight.data[2], model[2].weight.data[:, 5] = 0, 0
    model[0].weight.data[3] *= 1000
    x = torch.rand(2, 3, 8, 8)
    with torch.inference_mode():
        expected = model(x)
        equalize_channels(model, x[:1])
        assert torch.equal(model(x), expected)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
