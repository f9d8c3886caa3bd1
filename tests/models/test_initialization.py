from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bundler.device.numerics import informative_problem
from bundler.models.initialization import LOGIT_DEVIATION, random_state_dict
from bundler.models.mobilenet_v3 import QuantizableMobileNetV3, mobilenet_v3_small
from bundler.models.yolov3 import yolov3
from bundler.models.yolov4 import yolov4
from bundler.models.yolov5 import yolov5n


def build() -> QuantizableMobileNetV3:
    return mobilenet_v3_small(num_classes=10)


def outputs_of(state_dict: Any, pictures: Tensor) -> Tensor:
    with torch.inference_mode():
        outputs: Tensor = mobilenet_v3_small(weights=state_dict, num_classes=10)(pictures)
    return outputs


def test_a_fresh_network_says_nothing_and_a_random_one_does(calibration: Tensor, golden: Tensor) -> None:
    with torch.inference_mode():
        assert "almost zero" in informative_problem(build()(golden).numpy())
    state_dict = random_state_dict(build, calibration, seed=0)
    assert informative_problem(outputs_of(state_dict, golden).numpy()) == ""
    spread = outputs_of(state_dict, calibration)
    assert float((spread - spread.mean(0)).std()) == pytest.approx(LOGIT_DEVIATION, rel=1e-3)  # float32 sums of 576 products
    assert float(spread.mean(0).abs().max()) < 1e-3


def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers_random_state(calibration: Tensor) -> None:
    before = torch.random.get_rng_state()
    first, again = (random_state_dict(build, calibration, seed=3) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    torch.rand(1)
    other = random_state_dict(build, calibration, seed=4)
    assert not torch.equal(first["features.0.0.weight"], other["features.0.0.weight"])


def test_statistics_come_from_the_images(calibration: Tensor) -> None:
    model = build()
    state_dict = random_state_dict(lambda: model, calibration, seed=0)
    convolved = torch.nn.functional.conv2d(calibration, state_dict["features.0.0.weight"], stride=2, padding=1)
    # A plain average over the two batches of 8; the variances differ by how far the two batches' means are apart.
    torch.testing.assert_close(state_dict["features.0.1.running_mean"], convolved.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state_dict["features.0.1.running_var"], convolved.var((0, 2, 3)), rtol=0.2, atol=1e-3)
    assert {norm.momentum for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)} == {0.01}  # torchvision's


@pytest.mark.parametrize("parser", [yolov3, yolov4, yolov5n])
def test_a_detector_sees_few_objects_and_boxes_near_the_anchors(parser: Callable[..., Any], calibration: Tensor) -> None:
    weights = random_state_dict(lambda: parser(num_classes=10), calibration, seed=0)
    with torch.inference_mode():
        outputs = parser(weights=weights, num_classes=10)(calibration)
    objectness, classes = outputs[..., 4], outputs[..., 5:]
    assert 0.01 < float(objectness.mean()) < 0.3
    assert float((objectness > 0.5).float().mean()) < 0.2
    assert float(classes.std()) > 0.2  # of probabilities: decided, and not always the same way
    assert 15 < float(outputs[..., 2:4].median()) < 120  # pixels; the anchors are 10 to 459 wide and high
    assert float((outputs[0] - outputs[1]).abs().max()) > 1
