"""What only EfficientNet has: residual branches that are dropped at random, while training and never afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bundler.models.efficientnet import QuantizableMBConv, efficientnet_b0
from bundler.quantization import calibrate, convert, quantized_engine
from bundler.targets import TargetProfile, find_target

from torchvision.ops import StochasticDepth


def answers(model: torch.nn.Module, pictures: Tensor, times: int = 3) -> set[bytes]:
    with torch.no_grad():
        return {model(pictures).numpy().tobytes() for _ in range(times)}


def test_depth_is_random_only_while_training(
    weights_of: Callable[[str], Mapping[str, Tensor]], calibration: Tensor, target: TargetProfile
) -> None:
    weights = weights_of("efficientnet_b0")
    training = efficientnet_b0(
        weights=weights, num_classes=10, dropout=0.0, quantize=True, is_qat=True, target=target.quantization
    )
    for module in training.modules():
        if isinstance(module, StochasticDepth):
            module.p = 0.5
    training.apply(torch.ao.quantization.disable_observer)
    training.apply(torch.ao.quantization.disable_fake_quant)
    assert len(answers(training, calibration)) > 1
    assert len(answers(training.eval(), calibration)) == 1

    prepared = efficientnet_b0(weights=weights, num_classes=10, quantize=True, target=target.quantization)
    calibrate(prepared, [calibration])
    converted = convert(prepared, target.quantization)
    with quantized_engine(target.quantization.engine):
        assert len(answers(converted, calibration[:2])) == 1


def test_residuals_are_added_where_the_shapes_allow_it() -> None:
    model = efficientnet_b0(num_classes=10, quantize=True, target=find_target("arm64").quantization)
    blocks = [module for module in model.modules() if isinstance(module, QuantizableMBConv)]
    assert len(blocks) == 16
    assert sum(hasattr(block, "skip_add") for block in blocks) == 9  # 16 blocks, the first of each of the 7 stages without
