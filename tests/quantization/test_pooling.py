"""Global average pooling: the float network's own in float, with the scale of its means in INT8."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from bundler.models.registry import find_model, load_parser
from bundler.quantization import calibrate, convert, make_quantizable, quantized_engine
from bundler.quantization.pooling import QuantizableGlobalAverage, QuantizedGlobalAverage
from bundler.targets import TargetProfile


def test_only_the_mean_of_a_whole_channel_is_replaced() -> None:
    pools = [nn.AdaptiveAvgPool2d(size) for size in (1, (1, 1), 7, (1, 2))]
    model = nn.Sequential(*pools)
    make_quantizable(model)
    assert [type(child) is QuantizableGlobalAverage for child in model] == [True, True, False, False]
    x = torch.rand(2, 3, 5, 4)
    assert torch.equal(model[0](x), pools[0](x))


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v3_small", "efficientnet_b0"])
def test_means_are_rounded_to_a_fraction_of_what_their_inputs_are(
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
