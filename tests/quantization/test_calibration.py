from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bundler.models.resnet import resnet18
from bundler.quantization import calibrate


def test_every_picture_is_counted_and_seen(weights_of: Callable[[str], Mapping[str, Tensor]], calibration: Tensor) -> None:
    prepared = resnet18(weights=weights_of("resnet18"), num_classes=10, quantize=True).train()
    assert calibrate(prepared, calibration[:7].split(3)) == 7
    assert not prepared.training
    observer = prepared.quant.activation_post_process
    assert observer.min_val == calibration[:7].min()
    assert observer.max_val == calibration[:7].max()
    assert all(parameter.grad is None for parameter in prepared.parameters())


def test_no_picture_leaves_the_observers_empty(weights_of: Callable[[str], Mapping[str, Tensor]]) -> None:
    prepared = resnet18(weights=weights_of("resnet18"), num_classes=10, quantize=True)
    assert calibrate(prepared, []) == 0
    assert torch.isinf(prepared.quant.activation_post_process.min_val)
