"""A network rounded layer after layer: nearer to FP32 than with the nearest weights, and its means kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from bundler.graphs.comparison import sqnr_db
from bundler.models.registry import find_model, load_parser
from bundler.quantization import calibrate, convert, count_layers, quantized_engine, round_weights
from bundler.quantization.saturation import LARGEST_SUM, largest_pair_sums
from bundler.quantization.weight_rounding import PIXELS
from bundler.targets import QuantizationProfile, TargetProfile, find_target

# A scale for all channels, so that rounding shifts the small ones visibly.
COARSE = QuantizationProfile(engine="qnnpack", qconfig="qnnpack", options=(), fallback=())


@pytest.mark.parametrize(("name", "alias"), [("mobilenet_v2", "x86"), ("resnet18", "arm64")])
def test_a_network_comes_nearer_to_fp32(
    name: str,
    alias: str,
    weights_of: Callable[[str], Mapping[str, Tensor]],
    calibration: Tensor,
    golden: Tensor,
) -> None:
    parser, target = load_parser(find_model(name)[1]), find_target(alias)
    pictures = torch.cat([calibration, golden])

    def outputs(*, rounded: bool) -> Tensor:
        prepared = parser(weights=weights_of(name), num_classes=10, quantize=True, target=target.quantization)
        calibrate(prepared, [pictures])
        if rounded:
            round_weights(prepared, [pictures])
        converted = convert(prepared, target.quantization)
        with quantized_engine(target.quantization.engine), torch.inference_mode():
            answers: Tensor = converted(pictures)
        for module in converted.modules():
            if rounded and isinstance(module, torch.ao.nn.quantized.Conv2d) and module.groups == 1:
                assert int(largest_pair_sums(module.weight().int_repr().short()).max()) <= LARGEST_SUM
        return answers

    reference = parser(weights=weights_of(name), num_classes=10)(pictures).detach().numpy()
    plain, better = (sqnr_db(reference, outputs(rounded=rounded).numpy()) for rounded in (False, True))
    assert better > plain + 0.5


def test_the_same_seed_gives_the_same_weights(
    weights_of: Callable[[str], Mapping[str, Tensor]], target: TargetProfile, calibration: Tensor
) -> None:
    parser = load_parser(find_model("mobilenet_v2")[1])
    models = []
    for _ in range(2):
        prepared = parser(weights=weights_of("mobilenet_v2"), num_classes=10, quantize=True, target=target.quantization)
        calibrate(prepared, [calibration])
        round_weights(prepared, [calibration], seed=1)
        models.append({name: value.clone() for name, value in prepared.named_parameters()})
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def _of_the_first(prepared: nn.Module) -> nn.Conv2d:
    layer = next(part for part in prepared.modules() if isinstance(part, nn.Conv2d))
    assert layer.bias is not None
    return layer


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "resnext50_32x4d"])
def test_biases_alone_take_up_what_the_nearest_weights_shift(
    name: str, weights_of: Callable[[str], Mapping[str, Tensor]], calibration: Tensor
) -> None:
    prepared = load_parser(find_model(name)[1])(weights=weights_of(name), num_classes=10, quantize=True, target=COARSE)
    calibrate(prepared, calibration.split(8))
    exact = copy.deepcopy(_of_the_first(prepared))
    weights = {key: value.clone() for key, value in prepared.state_dict().items() if key.endswith(".weight")}
    rounded = list[int]()
    round_weights(prepared, [calibration], gptq=False, on_layer=lambda: rounded.append(1))
    assert len(rounded) == count_layers(prepared)
    assert all(torch.equal(prepared.state_dict()[key], value) for key, value in weights.items())  # torch will round them
    layer = next(part for part in convert(prepared, COARSE).modules() if callable(getattr(part, "set_weight_bias", None)))

    def shift(bias: Tensor | None) -> float:
        """Return by how much the first convolution's mean is off, RMS over the channels; 8-bit pictures included."""
        with torch.no_grad():
            scale, zero_point = prepared.quant.activation_post_process.calculate_qparams()  # type: ignore[union-attr, operator]
            pictures = torch.fake_quantize_per_tensor_affine(calibration, scale, zero_point.int(), 0, 255)
            given = exact._conv_forward(pictures, layer.weight().dequantize(), bias)  # type: ignore[operator]
            wanted = exact._conv_forward(calibration, exact.weight, exact.bias)
        return float(((given - wanted).mean((0, 2, 3)) / wanted.std((0, 2, 3))).square().mean().sqrt())

    before, after = shift(exact.bias), shift(_of_the_first(prepared).bias)
    assert before > 1e-3  # there is something to correct
    assert after < before / 100


def test_observers_and_layers_are_left_as_they_were(
    weights_of: Callable[[str], Mapping[str, Tensor]], target: TargetProfile, calibration: Tensor
) -> None:
    parser = load_parser(find_model("resnet18")[1])
    prepared = parser(weights=weights_of("resnet18"), num_classes=10, quantize=True, target=target.quantization)
    calibrate(prepared, [calibration])
    ranges = {key: value.clone() for key, value in prepared.state_dict().items() if key.endswith(("min_val", "max_val"))}
    assert ranges
    round_weights(prepared, [100 * calibration])
    assert all(torch.equal(prepared.state_dict()[key], value) for key, value in ranges.items())
    prepared(100 * calibration)
    assert not all(torch.equal(prepared.state_dict()[key], value) for key, value in ranges.items())  # they learn again


def test_of_large_pictures_fewer_run_at_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1))
    seen = []
    model.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    round_weights(model, [torch.zeros(3, 1, 1, 1).expand(3, 3, 1792, PIXELS // 1792 // 2)])
    assert seen == [2, 2]  # in float, and as it is rounded
