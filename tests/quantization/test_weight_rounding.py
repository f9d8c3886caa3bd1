"""Weight rounding layer by layer: a higher SQNR than rounding to nearest, and corrected biases."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from bundler.device.numerics import sqnr_db
from bundler.models.registry import find_model, load_parser
from bundler.quantization import calibrate, convert, count_layers, quantized_engine, round_weights
from bundler.quantization.saturation import MAX_PAIR_SUM, largest_pair_sums
from bundler.quantization.weight_rounding import MAX_PIXELS
from bundler.targets import QuantizationOption, QuantizationProfile, TargetProfile, find_target

# Per-tensor weight scales, with which rounding shifts the means of channels with small weights.
PER_TENSOR = QuantizationProfile(engine="qnnpack", qconfig="qnnpack", options=(), fallback=())


@pytest.mark.parametrize(("name", "alias"), [("mobilenet_v2", "x86"), ("resnet18", "arm64")])
def test_the_sqnr_of_a_network_is_higher_than_with_weights_rounded_to_nearest(
    name: str,
    alias: str,
    weights_of: Callable[[str], Mapping[str, Tensor]],
    calibration: Tensor,
    golden: Tensor,
) -> None:
    parser, target = load_parser(find_model(name)[1]), find_target(alias)
    images = torch.cat([calibration, golden])

    def outputs(*, rounded: bool) -> Tensor:
        prepared = parser(weights=weights_of(name), num_classes=10, quantize=True, target=target.quantization)
        calibrate(prepared, [images])
        if rounded:
            prepared = round_weights(prepared, [images])
        converted = convert(prepared, target.quantization)
        with quantized_engine(target.quantization.engine), torch.inference_mode():
            answers: Tensor = converted(images)
        for module in converted.modules():
            if rounded and isinstance(module, torch.ao.nn.quantized.Conv2d) and module.groups == 1:
                assert int(largest_pair_sums(module.weight().int_repr().short()).max()) <= MAX_PAIR_SUM
        return answers

    reference = parser(weights=weights_of(name), num_classes=10)(images).detach().numpy()
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
        models.append(dict(round_weights(prepared, [calibration], seed=1).named_parameters()))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def _first_convolution(prepared: nn.Module) -> nn.Conv2d:
    layer = next(part for part in prepared.modules() if isinstance(part, nn.Conv2d))
    assert layer.bias is not None
    return layer


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "resnext50_32x4d"])
def test_bias_correction_without_gptq_corrects_the_mean_of_the_first_convolution(
    name: str, weights_of: Callable[[str], Mapping[str, Tensor]], calibration: Tensor
) -> None:
    prepared = load_parser(find_model(name)[1])(weights=weights_of(name), num_classes=10, quantize=True, target=PER_TENSOR)
    calibrate(prepared, calibration.split(8))
    exact = copy.deepcopy(_first_convolution(prepared))
    weights = {key: value.clone() for key, value in prepared.state_dict().items() if key.endswith(".weight")}
    done = list[int]()
    rounded = round_weights(prepared, [calibration], gptq=False, on_layer=lambda: done.append(1))
    assert len(done) == count_layers(prepared)
    assert all(torch.equal(rounded.state_dict()[key], value) for key, value in weights.items())  # `convert` rounds them
    layer = next(part for part in convert(rounded, PER_TENSOR).modules() if callable(getattr(part, "set_weight_bias", None)))

    def shift(bias: Tensor | None) -> float:
        """Return the error of the channel means relative to their standard deviation, RMS, with quantized images."""
        with torch.no_grad():
            scale, zero_point = prepared.quant.activation_post_process.calculate_qparams()
            images = torch.fake_quantize_per_tensor_affine(calibration, scale, zero_point.int(), 0, 255)
            given = exact._conv_forward(images, layer.weight().dequantize(), bias)  # type: ignore[operator]
            wanted = exact._conv_forward(calibration, exact.weight, exact.bias)
        return float(((given - wanted).mean((0, 2, 3)) / wanted.std((0, 2, 3))).square().mean().sqrt())

    before, after = shift(exact.bias), shift(_first_convolution(rounded).bias)
    assert before > 1e-3  # there is something to correct
    assert after < before / 100


def test_the_prepared_model_is_not_changed(
    weights_of: Callable[[str], Mapping[str, Tensor]], target: TargetProfile, calibration: Tensor
) -> None:
    parser = load_parser(find_model("resnet18")[1])
    prepared = parser(weights=weights_of("resnet18"), num_classes=10, quantize=True, target=target.quantization)
    calibrate(prepared, [calibration])
    before = {key: value.clone() for key, value in prepared.state_dict().items()}
    qconfigs = [getattr(module, "qconfig", None) for module in prepared.modules()]
    rounded = round_weights(prepared, [100 * calibration])
    assert all(torch.equal(prepared.state_dict()[key], value) for key, value in before.items())
    assert qconfigs == [getattr(module, "qconfig", None) for module in prepared.modules()]
    ranges = {key: value for key, value in before.items() if key.endswith(("min_val", "max_val"))}
    assert ranges
    assert all(torch.equal(rounded.state_dict()[key], value) for key, value in ranges.items())  # nothing was observed
    rounded(100 * calibration)
    assert not all(torch.equal(rounded.state_dict()[key], value) for key, value in ranges.items())  # observers are enabled


@pytest.mark.parametrize("options", [("per-channel-weights",), ("per-channel-weights", "saturation-free-weights")])
def test_bias_correction_without_gptq_works_with_per_channel_weights(
    options: tuple[QuantizationOption, ...], weights_of: Callable[[str], Mapping[str, Tensor]], calibration: Tensor
) -> None:
    profile = PER_TENSOR.model_copy(update={"options": options})
    prepared = load_parser(find_model("resnet18")[1])(
        weights=weights_of("resnet18"), num_classes=10, quantize=True, target=profile
    )
    calibrate(prepared, [calibration])
    rounded = round_weights(prepared, [calibration[:4]], gptq=False)
    before, after = _first_convolution(prepared), _first_convolution(rounded)
    assert torch.equal(before.weight, after.weight)
    assert not torch.equal(before.bias, after.bias)  # type: ignore[arg-type]


def test_fewer_images_are_used_if_they_are_large() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1))
    seen = []
    model.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    round_weights(model, [torch.zeros(3, 1, 1, 1).expand(3, 3, 1792, MAX_PIXELS // 1792 // 2)])
    assert seen == [2, 2]  # in the float and in the quantized run
