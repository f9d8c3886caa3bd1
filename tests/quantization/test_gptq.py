"""Rounding that makes up for its errors: better than rounding to the nearest, and within what every processor multiplies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bundler.quantization.gptq import _compensated, _rows, _within_sums
from bundler.quantization.saturation import LARGEST_SUM, largest_pair_sums


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
def test_rows_are_what_the_weights_are_multiplied_with(layer: nn.Conv2d | nn.Linear) -> None:
    x = torch.randn(2, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 6, 7, 7)
    rows = _rows(layer, x, torch.Generator().manual_seed(0))
    weight = layer.weight.detach()
    flat = weight.permute(0, 2, 3, 1).flatten(1) if weight.ndim == 4 else weight
    products = torch.cat([part @ chunk.T for part, chunk in zip(rows, flat.chunk(len(rows)), strict=True)], 1)
    outputs = (layer(x) - layer.bias.reshape(-1, *[1] * (x.ndim - 2))).detach()  # type: ignore[union-attr]
    wanted = outputs if x.ndim == 2 else outputs.permute(0, 2, 3, 1).flatten(0, 2)
    order = [tensor[tensor[:, 0].argsort()] for tensor in (products, wanted)]  # positions come in a drawn order
    torch.testing.assert_close(*order, rtol=1e-4, atol=1e-5)


def correlated(rows: int, columns: int) -> Tensor:
    """Inputs of which some go together, as neighbouring channels do."""
    return torch.randn(rows, columns // 4) @ torch.randn(columns // 4, columns) + 0.1 * torch.randn(rows, columns)


@pytest.mark.parametrize("paired", [True, False])
def test_the_products_are_nearer_than_with_the_nearest_weights(paired: bool) -> None:
    x, weight = correlated(2000, 64), torch.randn(16, 64)
    scale = _within_sums(weight, weight.abs().amax(1) / 127)
    integers = _compensated(weight[None], scale[None], (x.T @ x)[None], paired=paired)[0]
    nearest = (weight / scale.unsqueeze(1)).round()
    wanted = x @ weight.T
    errors = [float((x @ (chosen * scale.unsqueeze(1)).T - wanted).square().mean()) for chosen in (integers, nearest)]
    assert errors[0] < errors[1] / 2
    assert float((integers - nearest).abs().max()) > 0
    assert integers.abs().max() <= 127
    if paired:
        assert int(largest_pair_sums(integers).max()) <= LARGEST_SUM


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    x, weight = correlated(500, 32), torch.randn(4, 32)
    x[:, 7:12] = 0
    scale = weight.abs().amax(1) / 127
    for gram in (x.T @ x, torch.zeros(32, 32)):
        integers = _compensated(weight[None], scale[None], gram[None], paired=False)[0]
        assert integers.isfinite().all()
        assert float((integers - weight / scale.unsqueeze(1)).abs().max()) < 64
