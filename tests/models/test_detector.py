"""Detectors: what a raw number means in pixels, and how much of a network each INT8 scope quantizes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from bundler.errors import CheckpointError
from bundler.graphs.exporter import export_onnx
from bundler.models.detector import BOX, Detector, darknet_layers
from bundler.models.initialization import random_state_dict
from bundler.models.specs import Int8Scope
from bundler.models.yolov3 import YoloV3
from bundler.models.yolov4 import YoloV4
from bundler.models.yolov5 import QuantizableYoloV5, YoloV5, YoloV5Architecture, yolov5n, yolov5s
from bundler.quantization import calibrate, convert, quantized_engine
from bundler.targets import TargetProfile, find_target

CLASSES = 3


def numbers(model: nn.Module) -> int:
    """Count what a Darknet file stores: weights, biases, and BatchNorm's statistics."""
    stored = [value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")]
    return sum(value.numel() for value in stored)


# Sources: the published weight files (yolov3.weights, yolov4.weights) and the model table of YOLOv5's README, for 80 classes.
@pytest.mark.parametrize(("make", "size"), [(YoloV3, 62_001_757), (YoloV4, 64_429_405)])
def test_a_darknet_network_has_the_numbers_of_its_published_file(make: Callable[[], Detector], size: int) -> None:
    assert numbers(make()) == size


@pytest.mark.parametrize(
    ("depth", "width", "size"),
    [
        (1 / 3, 0.25, 1_872_157),
        (1 / 3, 0.5, 7_235_389),
        (2 / 3, 0.75, 21_190_557),
        (1.0, 1.0, 46_563_709),
        (4 / 3, 1.25, 86_749_405),
    ],
)
def test_yolov5_has_the_published_number_of_parameters(depth: float, width: float, size: int) -> None:
    with torch.device("meta"):
        model = YoloV5(depth, width)
    assert sum(parameter.numel() for parameter in model.parameters()) == size


@pytest.mark.parametrize(("make", "convolutions"), [(YoloV3, 75), (YoloV4, 110)])
def test_darknets_layers_are_all_there_once(make: Callable[[], nn.Module], convolutions: int) -> None:
    model = make()
    layers = darknet_layers(model)
    assert len({layer.convolution for layer in layers}) == len(layers) == convolutions
    assert sum(layer.norm is None for layer in layers) == 3  # the predictions have a bias instead


@pytest.mark.parametrize("make", [lambda: YoloV3(CLASSES), lambda: YoloV4(CLASSES), lambda: YoloV5(1 / 3, 0.25, CLASSES)])
def test_a_raw_map_is_decoded_to_pixels(make: Callable[[], Detector]) -> None:
    """One cell of the middle map, by the formulas of the papers (YOLOv3: section 2.1; YOLOv4 and v5: scaled centres)."""
    model = make().eval()
    height, width, stride, anchor, row, column = 3, 5, 16, 1, 2, 4
    maps = [torch.zeros(1, 3 * (BOX + CLASSES), height * factor, width * factor) for factor in (2, 1)]
    maps.append(torch.zeros(1, 3 * (BOX + CLASSES), 2, 3))
    raw = [0.3, -1.2, 0.4, -0.7, 1.5, -2.0, 0.1, 3.0]
    first = anchor * (BOX + CLASSES)
    maps[1][0, first : first + BOX + CLASSES, row, column] = torch.tensor(raw)
    decoded = model.decode(maps)
    assert decoded.shape == (1, 3 * (4 + 1) * height * width + 3 * 6, BOX + CLASSES)
    # Boxes are ordered by stride, anchor, row and column.
    box = decoded[0, 3 * 4 * height * width + (anchor * height + row) * width + column].tolist()

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    scale = {YoloV3: 1.0, YoloV4: 1.1, YoloV5: 2.0}[type(model)]
    anchors = {YoloV3: (62, 45), YoloV4: (76, 55), YoloV5: (62, 45)}[type(model)]
    sizes = [(2 * sigmoid(value)) ** 2 for value in raw[2:4]] if isinstance(model, YoloV5) else [math.exp(v) for v in raw[2:4]]
    expected = [
        (sigmoid(raw[0]) * scale - (scale - 1) / 2 + column) * stride,
        (sigmoid(raw[1]) * scale - (scale - 1) / 2 + row) * stride,
        sizes[0] * anchors[0],
        sizes[1] * anchors[1],
        *(sigmoid(value) for value in raw[4:]),
    ]
    np.testing.assert_allclose(box, expected, rtol=1e-5)


def test_training_gives_the_raw_maps() -> None:
    maps = YoloV5(1 / 3, 0.25, CLASSES).train()(torch.rand(2, 3, 64, 96))
    assert [tuple(raw.shape) for raw in maps] == [(2, 24, 8, 12), (2, 24, 4, 6), (2, 24, 2, 3)]


@pytest.mark.parametrize("int8_scope", ["backbone", "whole"])
def test_each_scope_on_each_target(
    int8_scope: Int8Scope,
    target: TargetProfile,
    weights_of: Callable[[str], Mapping[str, Tensor]],
    calibration: Tensor,
    golden: Tensor,
    tmp_path: Path,
) -> None:
    prepared = yolov5n(
        weights=weights_of("yolov5n"), num_classes=10, quantize=True, target=target.quantization, int8_scope=int8_scope
    )
    calibrate(prepared, [calibration])
    converted = convert(prepared, target.quantization)
    stays = prepared.float_convolutions()
    with quantized_engine(target.quantization.engine):
        graph = export_onnx(
            converted,
            golden[:2],
            tmp_path / "int8.onnx",
            opset=13,
            task="detection",
            quantized=True,
            float_layers=stays,
        )
    assert (stays > 0) == (int8_scope == "backbone")
    assert graph.float_operators.get("Conv", 0) == stays
    operators = Counter(node.op_type for node in onnx.load(graph.path).graph.node)
    assert operators["ConvInteger"] == (3 if int8_scope == "whole" else 0)  # the raw maps, which are not rounded to 8 bits
    assert len(graph.saturation) == operators["Conv"] + operators["ConvInteger"] - stays
    assert not any(proof.saturating_channels for proof in graph.saturation)
    if int8_scope == "whole":  # the decoding, and nothing else
        assert {"Mul", "Sigmoid"} <= graph.float_operators.keys() <= {"Add", "Exp", "Mul", "Sigmoid", "Pow", "Sub"}
        assert graph.dequantize_nodes >= 3
    assert graph.output_step is None  # the output is float: one scale over pixels and probabilities would erase the latter


@pytest.mark.parametrize("activation", ["ReLU", "LeakyReLU(0.1)", "Hardswish", "Mish", "Identity"])
def test_each_activation_has_an_int8_form(activation: str, calibration: Tensor, golden: Tensor, tmp_path: Path) -> None:
    """Also of the backbone alone, whose maps go on in INT8 and in float at once."""
    target = find_target("x86")
    options: dict[str, Any] = {
        "num_classes": CLASSES,
        "architecture": YoloV5Architecture(release=5, activations=(activation,) * 59),
    }
    weights = random_state_dict(lambda: yolov5n(**options), calibration, seed=0)
    prepared = yolov5n(weights=weights, **options, quantize=True, target=target.quantization)
    calibrate(prepared, [calibration])
    converted = convert(prepared, target.quantization)
    with quantized_engine(target.quantization.engine):
        graph = export_onnx(
            converted,
            golden[:2],
            tmp_path / "int8.onnx",
            opset=13,
            task="detection",
            quantized=True,
            float_layers=prepared.float_convolutions(),
        )
    session = onnxruntime.InferenceSession(str(graph.path), providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {session.get_inputs()[0].name: golden[:2].numpy()})
    with torch.no_grad():
        expected = yolov5n(weights=weights, **options).eval()(golden[:2]).numpy()
    noise = ((given - expected)[..., :4] ** 2).sum()
    assert 10 * np.log10((expected[..., :4] ** 2).sum() / noise) > 15


def test_activations_are_as_many_as_blocks_and_have_a_name() -> None:
    model = YoloV5(1 / 3, 0.25, CLASSES, YoloV5Architecture(activations=("Mish", *["ReLU"] * 55, "LeakyReLU(0.2)")))
    acts = [block.act for block in model.blocks().values()]
    assert [type(act) for act in (acts[0], acts[1], acts[-1])] == [nn.Mish, nn.ReLU, nn.LeakyReLU]
    assert acts[-1].negative_slope == 0.2
    with pytest.raises(ValueError, match="zip"):
        YoloV5(1 / 3, 0.25, CLASSES, YoloV5Architecture(activations=("ReLU",) * 56))
    with pytest.raises(ValueError, match="unknown activation 'GELU'"):
        YoloV5(1 / 3, 0.25, CLASSES, YoloV5Architecture(activations=("GELU",) * 57))


@pytest.mark.parametrize("make", [lambda classes: YoloV5(1 / 3, 0.25, classes), YoloV3, YoloV4])
def test_the_heads_tell_the_number_of_classes(make: Callable[[int], Detector]) -> None:
    with torch.device("meta"):
        model, other = make(80), make(3)
    shapes = {key: tuple(value.shape) for key, value in other.state_dict().items()}
    assert model.classes_in(shapes) == 3
    assert model.classes_in({}) is None
    assert model.anchors_per_cell() == 3


def test_a_state_dict_with_other_classes_is_refused_with_their_number() -> None:
    with pytest.raises(CheckpointError, match="has other shapes than the model") as refusal:
        yolov5n(weights=yolov5n(num_classes=3).state_dict())
    assert "--num-classes 3" in refusal.value.next_step
    with pytest.raises(CheckpointError, match="has other shapes than the model") as refusal:
        yolov5s(weights=yolov5n().state_dict())
    assert "--num-classes" not in refusal.value.next_step


def test_the_boxes_are_never_quantized() -> None:
    """Decoded in INT8, one step over a range of hundreds of pixels is more than any probability."""
    model = yolov5n(num_classes=CLASSES, quantize=True, target=find_target("x86").quantization, int8_scope="whole")
    assert isinstance(model, QuantizableYoloV5)
    assert not hasattr(model.dequant, "activation_post_process")
