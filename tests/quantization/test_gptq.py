"""GPTQ: smaller output errors than rounding to nearest, and no pair of adjacent weights that can saturate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bundler.quantization.gptq import round_for_inputs, sample_rows
from bundler.quantization.saturation import MAX_PAIR_SUM, largest_pair_sums


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, padding=1),
        nn.Conv2d(6, 8, (1, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
        nn.Conv2d(6, 12, 3, stride=2, groups=3),
        nn.Conv2d(6, 6, 5, padding=2, groups=6),
        nn.Linear(6, 4),
    ],
)
def test_the_product_of_sampled_rows_and_weights_is_the_output_of_the_layer(layer: nn.Conv2d | nn.Linear) -> None:
    x = torch.randn(2, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 6, 7, 7)
    rows = sample_rows(layer, x, generator())
    weight = layer.weight.detach()
    flat = weight.permute(0, 2, 3, 1).flatten(1) if weight.ndim == 4 else weight
    products = torch.cat([part @ chunk.T for part, chunk in zip(rows, flat.chunk(len(rows)), strict=True)], 1)
    outputs = (layer(x) - layer.bias.reshape(-1, *[1] * (x.ndim - 2))).detach()  # type: ignore[union-attr]
    expected = outputs if x.ndim == 2 else outputs.permute(0, 2, 3, 1).flatten(0, 2)
    in_order = [tensor[tensor[:, 0].argsort()] for tensor in (products, expected)]  # positions are in random order
    torch.testing.assert_close(*in_order, rtol=1e-4, atol=1e-5)


def correlated(rows: int, columns: int) -> Tensor:
    """Return random inputs [rows, columns] with correlated columns, float64."""
    draw = generator()
    mixed = torch.randn(rows, columns // 4, generator=draw) @ torch.randn(columns // 4, columns, generator=draw)
    return (mixed + 0.1 * torch.randn(rows, columns, generator=draw)).double()


def smooth_images(count: int, channels: int) -> Tensor:
    """Return random images in which adjacent pixels are correlated, float64 [N, C, 16, 16]."""
    coarse = torch.randn(count, channels, 4, 4, generator=generator())
    return nn.functional.interpolate(coarse, size=16, mode="bicubic").double()


LINEAR = (nn.Linear(64, 16, bias=False), correlated(2000, 64))
CONVOLUTION = (nn.Conv2d(8, 16, 3, bias=False), smooth_images(16, 8))
DEPTHWISE = (nn.Conv2d(8, 8, 7, groups=8, bias=False), smooth_images(16, 8))


@pytest.mark.parametrize(("layer", "x", "paired"), [(*LINEAR, True), (*CONVOLUTION, True), (*DEPTHWISE, False)])
def test_output_errors_are_less_than_half_of_those_of_rounding_to_nearest(
    layer: nn.Conv2d | nn.Linear, x: Tensor, paired: bool
) -> None:
    layer.double()
    nn.init.normal_(layer.weight, generator=generator())
    with torch.no_grad():
        expected, exact = layer(x), layer.weight.clone()
        values, scale = round_for_inputs(layer, x, generator())
        scales = scale.reshape(-1, *[1] * (exact.ndim - 1))
        nearest = (exact / scales).round() * scales
        errors = []
        for weight in (values, nearest):
            layer.weight.data = weight
            errors.append(float((layer(x) - expected).square().mean()))
    assert errors[0] < errors[1] / 2
    integers = values / scales
    torch.testing.assert_close(integers, integers.round())
    assert integers.abs().max() <= 127.001
    assert torch.equal(scale, scale.float().double())
    if paired:
        assert int(largest_pair_sums(integers.round()).max()) <= MAX_PAIR_SUM
    else:
        assert (integers.abs().amax((1, 2, 3)) > 126.5).all()  # a depthwise convolution uses the whole range


@pytest.mark.parametrize("unused", [slice(7, 12), slice(None)], ids=["some", "all"])
def test_inputs_that_are_always_zero_are_handled(unused: slice) -> None:
    layer, x = nn.Linear(32, 4).double(), correlated(500, 32)
    x[:, unused] = 0
    with torch.no_grad():
        values, scale = round_for_inputs(layer, x, generator())
    assert values.isfinite().all()
    assert float(((values - layer.weight.detach()) / scale.unsqueeze(1)).abs().max()) < 64  # in quantization steps
