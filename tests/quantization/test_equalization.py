"""Cross-layer equalization: the function of the network is preserved, and INT8 does not degrade with badly scaled channels."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bundler.device.numerics import sqnr_db
from bundler.models.registry import find_model, load_parser
from bundler.quantization import calibrate, convert, equalize_channels, quantized_engine
from bundler.quantization.equalization import equalization_groups
from bundler.targets import TargetProfile

# Numbers of writers and readers of each group. A ResNet18 has one within each block and one for each stage's residual
# connection. In a MobileNetV2, only the last convolution of a block is not followed by ReLU6, which is not homogeneous.
GROUPS = {
    "resnet18": [(1, 1)] * 8 + [(3, 4), (3, 3), (3, 3), (3, 2)],
    "mobilenet_v2": [(1, 1)] * 2 + [(2, 2), (3, 3), (3, 3), (3, 3), (4, 4)],
    # In a DenseNet121, tensors within a layer have one reader. The i-th tensor that a block of n layers concatenates is read by
    # the n + 1 - i BatchNorms that follow.
    "densenet121": [(1, 1)] * 120 + [(1, layers + 1 - i) for layers in (6, 12, 24, 16) for i in range(layers + 1)],
}


def badly_scaled(model: nn.Module, sample: Tensor, *, seed: int = 0) -> nn.Module:
    """Return a copy whose channels are scaled by random factors from 0.05 to 20 in the writers, and back in the readers."""
    generator = torch.Generator().manual_seed(seed)
    scaled = copy.deepcopy(model)
    for group in equalization_groups(scaled, sample):
        group.divide(torch.exp(torch.empty(len(group.writers[0].weight)).uniform_(-3, 3, generator=generator)))
    return scaled


@pytest.mark.parametrize(("name", "expected"), GROUPS.items())
def test_groups_of_each_family(
    name: str, expected: list[tuple[int, int]], weights_of: Callable[[str], Mapping[str, Tensor]], golden: Tensor
) -> None:
    model = load_parser(find_model(name)[1])(weights=weights_of(name), num_classes=10)
    found = equalization_groups(model, golden[:1])
    assert sorted((len(group.writers), len(group.readers)) for group in found) == sorted(expected)


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "densenet121", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0"]
)
def test_the_function_of_the_network_is_preserved(
    name: str, weights_of: Callable[[str], Mapping[str, Tensor]], golden: Tensor
) -> None:
    model = load_parser(find_model(name)[1])(weights=weights_of(name), num_classes=10)
    ill = badly_scaled(model, golden[:1])
    with torch.inference_mode():
        before = {key: value.clone() for key, value in ill.state_dict().items()}
        expected = model(golden).numpy()
        assert equalize_channels(ill, golden.split(2)) > 2
        assert sqnr_db(expected, ill(golden).numpy()) > 80  # scaled float32 values are rounded differently
    assert any(not torch.equal(before[key], value) for key, value in ill.state_dict().items())


def test_the_sizes_of_channels_become_more_equal(weights_of: Callable[[str], Mapping[str, Tensor]], golden: Tensor) -> None:
    """Of the output of the second stage of a badly scaled ResNet18."""
    model = load_parser(find_model("resnet18")[1])(weights=weights_of("resnet18"), num_classes=10)
    ill = badly_scaled(model, golden[:1])

    def spread(network: nn.Module) -> float:
        seen: list[Tensor] = []
        handle = network.get_submodule("layer2").register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        with torch.no_grad():
            network(golden)
        handle.remove()
        sizes = seen[0].amax((0, 2, 3))
        return float(sizes[sizes > 0].log2().std())

    before = spread(ill)
    equalize_channels(ill, golden.split(2))
    assert spread(ill) < 0.6 * before


@pytest.mark.parametrize("fused", [False, True])
def test_int8_of_a_badly_scaled_network_is_as_accurate_after_equalization(
    fused: bool, weights_of: Callable[[str], Mapping[str, Tensor]], target: TargetProfile, calibration: Tensor, golden: Tensor
) -> None:
    parser = load_parser(find_model("resnet18")[1])
    plain = parser(weights=weights_of("resnet18"), num_classes=10)
    ill = badly_scaled(plain, golden[:1])
    if fused:
        ill.fuse_model(is_qat=False)  # type: ignore[operator]
    equal = copy.deepcopy(ill)
    equalize_channels(equal, [calibration])

    def int8_sqnr_db(model: nn.Module) -> float:
        prepared = parser(weights=model.state_dict(), num_classes=10, quantize=True, target=target.quantization)
        calibrate(prepared, [calibration])
        converted = convert(prepared, target.quantization)
        with quantized_engine(target.quantization.engine), torch.inference_mode():
            return sqnr_db(plain(golden).numpy(), converted(golden).numpy())

    without, equalized, best = int8_sqnr_db(ill), int8_sqnr_db(equal), int8_sqnr_db(plain)
    assert without < best - 5
    assert equalized > best - 1.5


class Branch(nn.Module):
    """The first result has two consumers, the second a sigmoid, the third a ReLU6; the last layer is executed twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.last = (nn.Conv2d(3, 3, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.second(torch.relu(x)) + x
        x = self.third(torch.sigmoid(x))
        x = self.last(nn.functional.relu6(x))
        return torch.as_tensor(self.last(x))


def test_layers_that_cannot_be_equalized_are_in_no_group() -> None:
    model = Branch().eval()
    assert equalization_groups(model, torch.rand(1, 3, 4, 4)) == ()


class Concatenated(nn.Module):
    """Two concatenated tensors that a BatchNorm reads, and two that a convolution reads, one of which has another consumer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.fourth = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.norm, self.last = nn.BatchNorm2d(6), nn.Conv2d(6, 3, 1)
        self.norm.running_var = torch.rand(6) * 1e-4  # small against epsilon
        self.norm.running_mean = torch.rand(6)

    def forward(self, x: Tensor) -> Tensor:
        normalised = self.norm(torch.cat([self.first(x), torch.relu(self.second(x))], 1))
        third = self.third(x)
        return torch.as_tensor(self.last(torch.cat([third, self.fourth(x)], 1)) + torch.sigmoid(normalised[:, :3]) + third)


def test_a_batch_norm_compensates_the_factors_of_concatenated_tensors() -> None:
    model, x = Concatenated().eval(), torch.rand(2, 3, 4, 4)
    groups = equalization_groups(model, x)
    assert [group.writers for group in groups] == [(model.first,), (model.second,)]
    with torch.inference_mode():
        model.first.weight.data[1] *= 100
        expected = model(x)
        equalize_channels(model, [x])
        torch.testing.assert_close(model(x), expected)
        for convolution in (model.first, model.second):
            values = torch.relu(convolution(x)) if convolution is model.second else convolution(x)
            largest = values.abs().amax((0, 2, 3))
            torch.testing.assert_close(largest[largest > 0], torch.ones(int((largest > 0).sum())))


def test_channels_that_are_always_zero_are_handled() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    model[0].weight.data[2], model[2].weight.data[:, 5] = 0, 0
    model[0].weight.data[3] *= 1000
    x = torch.rand(2, 3, 8, 8)
    with torch.inference_mode():
        expected = model(x)
        assert equalize_channels(model, [x]) == 1
        torch.testing.assert_close(model(x), expected)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


class ValueDependent(nn.Module):
    """Computes Python numbers from activations, as assertions and early exits do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu(self.first(x)))
        if not bool(x.isfinite().all()):
            raise ValueError("the values are not finite")
        return torch.as_tensor(self.third(torch.relu(x)))


def test_a_forward_that_reads_values_is_supported() -> None:
    model = ValueDependent().eval()
    groups = equalization_groups(model, torch.rand(1, 3, 4, 4))
    assert [(group.writers, group.readers) for group in groups] == [((model.first,), (model.second,))]


class Chain(nn.Module):
    """Notes, at each layer, how many results of earlier layers still exist."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(5))
        self.alive: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        results: list[weakref.ref[Tensor]] = []
        for layer in self.layers:
            x = torch.relu(layer(x))
            results.append(weakref.ref(x))
            self.alive.append(sum(result() is not None for result in results))
        return x


def test_results_are_released_while_the_model_is_recorded() -> None:
    """All activations of a large detector together need gigabytes."""
    model = Chain().eval()
    assert len(equalization_groups(model, torch.rand(1, 3, 4, 4))) == 4
    assert model.alive == [1] * 5
