"""Checkpoints that a model builder accepts, and the errors for those that it rejects."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bundler.errors import CheckpointError
from bundler.models.mobilenet_v2 import mobilenet_v2
from bundler.models.mobilenet_v3 import mobilenet_v3_small
from bundler.models.registry import find_model, load_parser
from bundler.models.resnet import resnet18, resnet34, resnet50, wide_resnet50_2
from bundler.quantization import convert
from bundler.targets import TargetProfile

PREPARATIONS: tuple[dict[str, Any], ...] = ({}, {"quantize": True}, {"quantize": True, "is_qat": True})

SMALL = ["resnet18", "mobilenet_v2", "mobilenet_v3_small"]

StateDict = dict[str, Tensor]


@pytest.fixture(scope="module", params=SMALL)
def small(
    request: pytest.FixtureRequest, weights_of: Callable[[str], Mapping[str, Tensor]]
) -> tuple[Callable[..., Any], StateDict]:
    parser = load_parser(find_model(request.param)[1])

    def build(state_dict: Mapping[str, Tensor], **kwargs: Any) -> Any:
        return parser(weights=state_dict, num_classes=10, **kwargs)

    return build, dict(weights_of(request.param))


@pytest.fixture
def resnet18_weights(weights_of: Callable[[str], Mapping[str, Tensor]]) -> StateDict:
    return dict(weights_of("resnet18"))


def outputs_of(model: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        outputs: Tensor = model(images)
    return outputs


def assert_same(one: nn.Module, other: nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


Small = tuple[Callable[..., Any], StateDict]


def test_the_callers_state_dict_is_not_changed(small: Small) -> None:
    build, weights = small
    before = {key: value.clone() for key, value in weights.items()}
    for arguments in PREPARATIONS:
        model = build(weights, **arguments)
        with torch.no_grad():
            for value in model.state_dict().values():
                value.fill_(1)
    assert all(torch.equal(weights[key], before[key]) for key in before)


def test_a_checkpoint_of_the_fused_model_is_loaded(small: Small, golden: Tensor) -> None:
    build, weights = small
    fused = build(weights)
    fused.fuse_model(is_qat=False)
    checkpoint = fused.state_dict()
    assert checkpoint.keys() != weights.keys()
    rebuilt = build(checkpoint)
    assert_same(rebuilt, fused)
    assert torch.equal(outputs_of(rebuilt, golden), outputs_of(fused, golden))
    prepared = build(checkpoint, quantize=True)
    assert_same(prepared, build(weights, quantize=True))
    assert torch.equal(outputs_of(prepared, golden), outputs_of(fused, golden))


def test_a_checkpoint_of_the_model_fused_for_qat_is_loaded(small: Small) -> None:
    build, weights = small
    fused = build(weights).train()
    fused.fuse_model(is_qat=True)
    checkpoint = fused.state_dict()
    assert any(key.endswith("running_mean") for key in checkpoint)
    rebuilt = build(checkpoint, quantize=True, is_qat=True)
    assert rebuilt.training
    assert_same(rebuilt, build(weights, quantize=True, is_qat=True))


def test_a_half_precision_checkpoint_is_loaded(small: Small, golden: Tensor) -> None:
    build, weights = small
    half = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    rounded = {key: value.float() if value.is_floating_point() else value for key, value in half.items()}
    model = build(half)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(outputs_of(model, golden), outputs_of(build(rounded), golden))
    assert_same(build(half, quantize=True), build(rounded, quantize=True))


@pytest.mark.parametrize("quantize", [False, True])
def test_a_checkpoint_without_num_batches_tracked_is_loaded(small: Small, golden: Tensor, quantize: bool) -> None:
    build, weights = small
    older = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    assert len(older) < len(weights)
    model = build(older, quantize=quantize)
    assert torch.equal(outputs_of(model, golden), outputs_of(build(weights, quantize=quantize), golden))


def test_a_checkpoint_without_num_batches_tracked_and_with_newer_metadata_is_loaded(resnet18_weights: StateDict) -> None:
    """Conversion tools can remove keys and keep torch's metadata."""
    model = resnet18(weights=resnet18_weights, num_classes=10)
    newer = model.state_dict()
    assert isinstance(newer, OrderedDict)
    for key in [key for key in newer if key.endswith("num_batches_tracked")]:
        del newer[key]
    assert newer._metadata["bn1"] == {"version": 2}  # type: ignore[attr-defined]  # torch adds it
    resnet18(weights=newer, num_classes=10)


# Rejected checkpoints


def test_another_number_of_classes_is_reported_with_layer_shapes_and_option(small: Small) -> None:
    build, weights = small
    head = list(weights)[-1].rpartition(".")[0]
    seven = {key: value[:7] if key.startswith(f"{head}.") else value for key, value in weights.items()}
    width = weights[f"{head}.weight"].shape[1]
    for quantize in (False, True):
        with pytest.raises(CheckpointError) as refusal:
            build(seven, quantize=quantize)
        assert f"{head}.weight is [7, {width}] in the checkpoint and [10, {width}] in the model" in refusal.value.message
        assert f"{head}.bias is [7] in the checkpoint and [10] in the model" in refusal.value.message
        assert "--num-classes 7" in refusal.value.next_step


def test_another_number_of_classes_in_a_fused_checkpoint_is_reported(resnet18_weights: StateDict) -> None:
    fused = resnet18(weights=resnet18_weights, num_classes=10)
    fused.fuse_model(is_qat=False)
    with pytest.raises(CheckpointError, match=r"fc\.weight is \[10, 512\] in the checkpoint and \[1000, 512\]") as refusal:
        resnet18(weights=fused.state_dict(), quantize=True)
    assert "--num-classes 10" in refusal.value.next_step


def test_another_input_layer_is_not_reported_as_another_number_of_classes(resnet18_weights: StateDict) -> None:
    grey = {**resnet18_weights, "conv1.weight": resnet18_weights["conv1.weight"][:, :1]}
    with pytest.raises(CheckpointError, match=r"conv1\.weight is \[64, 1, 7, 7\] in the checkpoint") as refusal:
        resnet18(weights=grey, num_classes=10)
    assert "--num-classes" not in refusal.value.next_step


def test_some_of_many_other_shapes_are_listed_and_the_rest_counted() -> None:
    wide = wide_resnet50_2(num_classes=10).state_dict()
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv1\.weight is \[128, 64, 1, 1\].*and \d+ more") as refusal:
        resnet50(weights=wide, num_classes=10)
    assert "--num-classes" not in refusal.value.next_step


def test_missing_and_unexpected_keys_are_listed(resnet18_weights: StateDict) -> None:
    given = {**resnet18_weights, "ema.decay": torch.ones(1), "fc.bias": torch.ones(3)}
    del given["layer1.0.conv1.weight"]
    with pytest.raises(CheckpointError) as refusal:
        resnet18(weights=given, num_classes=10)
    said = refusal.value.message
    assert "keys compared with the plain model" in said
    assert "1 missing (layer1.0.conv1.weight)" in said
    assert "1 unexpected (ema.decay)" in said
    assert "1 with another shape (fc.bias: [3], expected [10])" in said


def test_a_backbone_without_head_is_reported_as_a_part_of_the_network(resnet18_weights: StateDict) -> None:
    given = {key: value for key, value in resnet18_weights.items() if not key.startswith("fc.")}
    with pytest.raises(
        CheckpointError, match=r"has only a part of the network, or is of a smaller one.*2 missing \(fc.bias, fc.weight\)$"
    ) as refusal:
        resnet18(weights=given, num_classes=10)
    assert "backbone" in refusal.value.next_step


def test_a_checkpoint_of_another_network_is_rejected(resnet18_weights: StateDict) -> None:
    for builder in (resnet34, mobilenet_v2, mobilenet_v3_small):
        for arguments in PREPARATIONS:
            with pytest.raises(CheckpointError, match=r"(another network|a smaller one).*\d+ missing \(.*, …\)"):
                builder(weights=resnet18_weights, num_classes=10, **arguments)


def test_a_damaged_fused_checkpoint_is_compared_with_the_fused_model(resnet18_weights: StateDict) -> None:
    fused = resnet18(weights=resnet18_weights, num_classes=10)
    fused.fuse_model(is_qat=False)
    checkpoint = dict(fused.state_dict())
    del checkpoint["layer4.1.conv2.bias"]
    with pytest.raises(CheckpointError, match=r"compared with the fused model: 1 missing \(layer4\.1\.conv2\.bias\)"):
        resnet18(weights=checkpoint, num_classes=10, quantize=True)


def test_the_float_weights_of_a_prepared_checkpoint_are_loaded(small: Small) -> None:
    build, weights = small
    prepared = build(weights, quantize=True)
    assert_same(build(prepared.state_dict(), quantize=True), prepared)
    trained = build(weights, quantize=True, is_qat=True)
    checkpoint = trained.state_dict()
    assert any("fake_quant" in key for key in checkpoint)
    for arguments in PREPARATIONS:
        assert_same(build(checkpoint, **arguments), build(weights, **arguments))


def test_a_fused_checkpoint_is_rejected_for_qat(resnet18_weights: StateDict) -> None:
    fused = resnet18(weights=resnet18_weights, num_classes=10)
    fused.fuse_model(is_qat=False)
    with pytest.raises(CheckpointError, match="BatchNorm is folded into its convolution"):
        resnet18(weights=fused.state_dict(), num_classes=10, quantize=True, is_qat=True)


def test_a_converted_state_dict_is_rejected(resnet18_weights: StateDict, target: TargetProfile) -> None:
    prepared = resnet18(weights=resnet18_weights, num_classes=10, quantize=True, target=target.quantization)
    with torch.inference_mode():
        prepared(torch.randn(2, 3, 64, 64))
    checkpoint = convert(prepared, target.quantization).state_dict()
    for arguments in PREPARATIONS:
        with pytest.raises(CheckpointError, match="of an already quantized") as refusal:
            resnet18(weights=checkpoint, num_classes=10, **arguments)
        assert "float model" in refusal.value.next_step


@pytest.mark.parametrize("weights", [{"conv1.weight": [1.0]}, {1: torch.ones(1)}, {"conv1.weight": None}])
def test_other_objects_than_a_state_dict_are_rejected(weights: Any) -> None:
    with pytest.raises(CheckpointError, match="not a state dict"):
        resnet18(weights=weights)


# Global state


@pytest.mark.parametrize("is_qat", [False, True])
def test_builders_do_not_change_the_engine(resnet18_weights: StateDict, target: TargetProfile, is_qat: bool) -> None:
    before = torch.backends.quantized.engine
    resnet18(weights=resnet18_weights, num_classes=10, quantize=True, is_qat=is_qat, target=target.quantization)
    assert torch.backends.quantized.engine == before
    with pytest.raises(CheckpointError):
        resnet18(weights={"a": torch.ones(1)}, quantize=True, is_qat=is_qat, target=target.quantization)
    assert torch.backends.quantized.engine == before
