"""Channels brought to one size: the same function, and INT8 that is better for it and no longer collapses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from bundler.graphs.comparison import sqnr_db
from bundler.models.registry import find_model, load_parser
from bundler.quantization import calibrate, convert, equalize_channels, quantized_engine
from bundler.quantization.equalization import channel_streams
from bundler.targets import TargetProfile

# Writers and readers of each stream. A ResNet18 has one within each block and one for each stage's residual connection, from
# the stem's maximum to the mean before the last layer. In a MobileNetV2, only what blocks write has no ReLU6, which clips.
STREAMS = {
    "resnet18": [(1, 1)] * 8 + [(3, 4), (3, 3), (3, 3), (3, 2)],
    "mobilenet_v2": [(1, 1)] * 2 + [(2, 2), (3, 3), (3, 3), (3, 3), (4, 4)],
    # Of a DenseNet121, what lies within a layer or behind a norm has one reader; what a block of n layers concatenates is
    # read by all norms that follow, n + 1 - i for the i-th tensor.
    "densenet121": [(1, 1)] * 120 + [(1, layers + 1 - i) for layers in (6, 12, 24, 16) for i in range(layers + 1)],
}


def ill_scaled(model: nn.Module, sample: Tensor, *, seed: int = 0) -> nn.Module:
    """Multiply the channels of each stream by factors from 0.05 to 20, and divide by them behind (issue 4)."""
    generator = torch.Generator().manual_seed(seed)
    ill = copy.deepcopy(model)
    for stream in channel_streams(ill, sample):
        stream.divide(torch.exp(torch.empty(len(stream.writers[0].weight)).uniform_(-3, 3, generator=generator)))
    return ill


@pytest.mark.parametrize(("name", "streams"), STREAMS.items())
def test_every_stream_is_found(
    name: str, streams: list[tuple[int, int]], weights_of: Callable[[str], Mapping[str, Tensor]], golden: Tensor
) -> None:
    model = load_parser(find_model(name)[1])(weights=weights_of(name), num_classes=10)
    found = channel_streams(model, golden[:1])
    assert sorted((len(stream.writers), len(stream.readers)) for stream in found) == sorted(streams)


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "densenet121", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0"]
)
def test_the_function_stays(name: str, weights_of: Callable[[str], Mapping[str, Tensor]], golden: Tensor) -> None:
    model = load_parser(find_model(name)[1])(weights=weights_of(name), num_classes=10)
    ill = ill_scaled(model, golden[:1])
    with torch.inference_mode():
        before = {key: value.clone() for key, value in ill.state_dict().items()}
        expected = model(golden).numpy()
        assert equalize_channels(ill, golden.split(2)) > 2
        assert sqnr_db(expected, ill(golden).numpy()) > 80  # float32 rounds; scaled by factors it rounds differently
    assert any(not torch.equal(before[key], value) for key, value in ill.state_dict().items())


def test_channels_are_of_one_size_afterwards(weights_of: Callable[[str], Mapping[str, Tensor]], golden: Tensor) -> None:
    """What lies between the stages of an ill-scaled network."""
    model = load_parser(find_model("resnet18")[1])(weights=weights_of("resnet18"), num_classes=10)
    ill = ill_scaled(model, golden[:1])

    def spread(network: nn.Module) -> float:
        seen: list[Tensor] = []
        handle = network.layer2.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        with torch.no_grad():
            network(golden)
        handle.remove()
        sizes = seen[0].amax((0, 2, 3))
        return float(sizes[sizes > 0].log2().std())

    before = spread(ill)
    equalize_channels(ill, golden.split(2))
    assert spread(ill) < 0.6 * before


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
    equalize_channels(equal, [calibration])

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
    assert channel_streams(model, torch.rand(1, 3, 4, 4)) == ()


class Concatenated(nn.Module):
    """Concatenated tensors that a BatchNorm reads, and others that a convolution reads, or both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.fourth = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.norm, self.last = nn.BatchNorm2d(6), nn.Conv2d(6, 3, 1)
        self.norm.running_var = torch.rand(6) * 1e-4  # the epsilon counts
        self.norm.running_mean = torch.rand(6)

    def forward(self, x: Tensor) -> Tensor:
        normalised = self.norm(torch.cat([self.first(x), torch.relu(self.second(x))], 1))
        third = self.third(x)
        return torch.as_tensor(self.last(torch.cat([third, self.fourth(x)], 1)) + torch.sigmoid(normalised[:, :3]) + third)


def test_a_batch_norm_takes_in_the_factors_of_what_is_concatenated() -> None:
    model, x = Concatenated().eval(), torch.rand(2, 3, 4, 4)
    streams = channel_streams(model, x)
    assert [stream.writers for stream in streams] == [(model.first,), (model.second,)]
    with torch.inference_mode():
        model.first.weight.data[1] *= 100
        expected = model(x)
        equalize_channels(model, [x])
        torch.testing.assert_close(model(x), expected)
        for convolution in (model.first, model.second):
            values = torch.relu(convolution(x)) if convolution is model.second else convolution(x)
            largest = values.abs().amax((0, 2, 3))
            torch.testing.assert_close(largest[largest > 0], torch.ones(int((largest > 0).sum())))


def test_channels_of_zero_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    model[0].weight.data[2], model[2].weight.data[:, 5] = 0, 0
    model[0].weight.data[3] *= 1000
    x = torch.rand(2, 3, 8, 8)
    with torch.inference_mode():
        expected = model(x)
        assert equalize_channels(model, [x]) == 1
        torch.testing.assert_close(model(x), expected)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
