"""Darknet's files, written here byte by byte as Darknet does, and every way in which one does not fit."""

from __future__ import annotations

import struct
from itertools import accumulate

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bundler.errors import CheckpointError
from bundler.models.darknet_weights import DarknetLayer, darknet_classes, read_darknet_weights
from bundler.models.registry import find_model, load_parser

LAYERS = [
    DarknetLayer(convolution="stem.conv", norm="stem.bn"),
    DarknetLayer(convolution="body.0", norm="body.1"),
    DarknetLayer(convolution="prediction", norm=None),
    DarknetLayer(convolution="last.conv", norm="last.bn"),
]
SIZES = [4 * 3 + 3 * 2 * 9, 4 * 5 + 5 * 3, 6 + 6 * 5, 4 * 2 + 2 * 6]  # by hand: numbers of each layer
BOUNDARIES = [0, *accumulate(SIZES)]


def model() -> nn.Module:
    return nn.ModuleDict(
        {
            "last": nn.ModuleDict({"bn": nn.BatchNorm2d(2), "conv": nn.Conv2d(6, 2, 1, bias=False)}),  # not the file's order
            "stem": nn.ModuleDict({"conv": nn.Conv2d(2, 3, 3, bias=False), "bn": nn.BatchNorm2d(3)}),
            "body": nn.Sequential(nn.Conv2d(3, 5, 1, bias=False), nn.BatchNorm2d(5)),
            "prediction": nn.Conv2d(5, 6, 1),
        }
    )


SHAPES = {key: tuple(value.shape) for key, value in model().state_dict().items()}


def header(major: int = 0, minor: int = 2, revision: int = 5, seen: int = 32013312) -> bytes:
    return struct.pack("<iii", major, minor, revision) + struct.pack("<Q" if major * 10 + minor >= 2 else "<I", seen)


def numbers_of(module: nn.Module) -> bytes:
    """Return a model's numbers in the order of Darknet's load_convolutional_weights."""
    parts: list[Tensor | None] = []
    for layer in LAYERS:
        convolution = module.get_submodule(layer.convolution)
        assert isinstance(convolution, nn.Conv2d)
        if layer.norm is None:
            parts += [convolution.bias]
        else:
            norm = module.get_submodule(layer.norm)
            assert isinstance(norm, nn.BatchNorm2d)
            parts += [norm.bias, norm.weight, norm.running_mean, norm.running_var]
        parts.append(convolution.weight)
    return b"".join(part.detach().numpy().astype("<f4").tobytes() for part in parts if part is not None)


@pytest.fixture
def random_model() -> nn.Module:
    module = model()
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape))
    return module


def read(content: bytes) -> dict[str, Tensor]:
    return read_darknet_weights(content, LAYERS, SHAPES, source="mine.weights")


def counting(count: int = BOUNDARIES[-1]) -> bytes:
    return header() + np.arange(count, dtype="<f4").tobytes()


@pytest.mark.parametrize(("major", "minor"), [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (10, 1000)])
def test_every_number_comes_back_where_it_was(major: int, minor: int, random_model: nn.Module) -> None:
    loaded = read(header(major, minor) + numbers_of(random_model))
    expected = random_model.state_dict()
    assert set(loaded) == set(expected)
    assert all(torch.equal(loaded[key], expected[key]) and loaded[key].dtype == expected[key].dtype for key in expected)
    model().load_state_dict(loaded)
    assert len(header(0, 1)) == 16
    assert len(header(0, 2)) == 20


def test_numbers_are_read_in_the_order_of_the_file() -> None:
    loaded = read(counting())
    assert loaded["stem.bn.bias"].tolist() == [0, 1, 2]
    assert loaded["stem.bn.weight"].tolist() == [3, 4, 5]
    assert loaded["stem.bn.running_mean"].tolist() == [6, 7, 8]
    assert loaded["stem.bn.running_var"].tolist() == [9, 10, 11]
    assert loaded["stem.conv.weight"][0, 0].tolist() == [[12, 13, 14], [15, 16, 17], [18, 19, 20]]
    assert loaded["prediction.bias"].tolist() == list(range(BOUNDARIES[2], BOUNDARIES[2] + 6))
    assert loaded["last.conv.weight"].flatten()[-1] == BOUNDARIES[-1] - 1


def test_tensors_are_the_callers_own() -> None:
    content = counting()
    read(content)["stem.bn.bias"].fill_(7)
    assert content == counting()


def test_norms_without_a_counter() -> None:
    shapes = {key: shape for key, shape in SHAPES.items() if not key.endswith("num_batches_tracked")}
    assert set(read_darknet_weights(counting(), LAYERS, shapes, source="mine.weights")) == set(shapes)


def test_a_network_of_ours_takes_exactly_as_many_numbers_as_its_layers_have() -> None:
    with torch.device("meta"):  # its shapes alone; the numbers would take 250 MB
        yolov3 = load_parser(find_model("yolov3")[1])(num_classes=80)
    shapes = {key: tuple(value.shape) for key, value in yolov3.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"the model has 62,001,757 values, the file 0$"):  # as Darknet's yolov3.weights
        read_darknet_weights(header(), yolov3.darknet_layers(), shapes, source="yolov3.weights")


# Files of another size


@given(count=st.integers(0, BOUNDARIES[-1] - 1).filter(lambda count: count not in BOUNDARIES[1:]), cut=st.integers(0, 3))
def test_a_truncated_file_names_the_layer_in_which_it_ends(count: int, cut: int) -> None:
    check_truncated(count, cut)


@pytest.mark.parametrize("count", [0, *(boundary - 1 for boundary in BOUNDARIES[1:])])
def test_a_file_truncated_near_a_boundary_names_the_layer_that_is_missing(count: int) -> None:
    check_truncated(count, 0)


@pytest.mark.parametrize("index", range(1, len(BOUNDARIES) - 1))
def test_a_backbone_alone_is_told_from_a_truncated_file(index: int) -> None:
    """`darknet53.conv.74` contains the first 52 convolutions of a YOLOv3, whole."""
    check_truncated(BOUNDARIES[index], 1)
    with pytest.raises(CheckpointError, match=f"contains the first {index} of {len(LAYERS)} convolutions") as refusal:
        read(counting(BOUNDARIES[index]))
    assert "int8-qat" in refusal.value.next_step
    assert refusal.value.exit_code == 6


def check_truncated(count: int, bytes_of_the_next: int) -> None:
    content = counting()[: len(header()) + 4 * count + bytes_of_the_next]
    index = max(index for index, start in enumerate(BOUNDARIES) if start <= count)
    with pytest.raises(CheckpointError) as refusal:
        read(content)
    found = f"{LAYERS[index].convolution}, with {count - BOUNDARIES[index]} of its {SIZES[index]} values"
    assert f"mine.weights ends within the layer {found}" in refusal.value.message
    assert refusal.value.message.endswith(f"the model has {BOUNDARIES[-1]} values, the file {count}")
    assert "--num-classes" in refusal.value.next_step
    assert refusal.value.exit_code == 6


@pytest.mark.parametrize("left", [1, 2, 5000])
def test_an_oversized_file_says_how_much_is_left(left: int) -> None:
    with pytest.raises(CheckpointError, match="larger network or another number of classes") as refusal:
        read(counting(BOUNDARIES[-1] + left))
    assert f"has {left:,} values more than the model," in refusal.value.message
    assert "--num-classes" in refusal.value.next_step


@pytest.mark.parametrize("left", [1, 2, 3])
def test_a_part_of_a_number_at_the_end_is_damage(left: int) -> None:
    with pytest.raises(CheckpointError, match=f"has {left} bytes after the last layer, last.conv: it is damaged"):
        read(counting() + bytes(left))


# Headers whose count of images has the other size


@pytest.mark.parametrize(("minor", "layout"), [(0, "<iiiQ"), (1, "<iiiQ"), (2, "<iiiI"), (5, "<iiiI")])
def test_the_length_tells_the_size_of_the_header(minor: int, layout: str, random_model: nn.Module) -> None:
    loaded = read(struct.pack(layout, 0, minor, 0, 7) + numbers_of(random_model))
    expected = random_model.state_dict()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_a_number_too_many_is_no_other_header(random_model: nn.Module) -> None:
    with pytest.raises(CheckpointError, match="1 values more than the model"):
        read(header(0, 1) + numbers_of(random_model) + b"\0\0\x80?")
    with pytest.raises(CheckpointError, match="ends within the layer last"):
        read(header(0, 2) + numbers_of(random_model)[:-4])


def test_the_classes_that_fit_a_length() -> None:
    content = header() + bytes(4 * (100 + 7 * 12))
    assert darknet_classes(content, lambda classes: 100 + 7 * classes) == 12
    assert darknet_classes(header(0, 1) + bytes(4 * 107), lambda classes: 100 + 7 * classes) == 1
    assert darknet_classes(content + b"\0\0", lambda classes: 100 + 7 * classes) == 12  # with a part of a number left
    assert darknet_classes(content[:-8], lambda classes: 100 + 7 * classes) is None
    assert darknet_classes(b"", lambda classes: 100 + 7 * classes) is None


# Files of another kind


@pytest.mark.parametrize("length", [0, 1, 11, 12, 15, 19])
def test_a_file_shorter_than_its_header(length: int) -> None:
    with pytest.raises(CheckpointError, match=f"shorter than a Darknet header: {length} bytes"):
        read(header()[:length])


def test_a_file_of_the_old_version_is_a_whole_header_at_16_bytes() -> None:
    with pytest.raises(CheckpointError, match=r"ends within the layer stem\.conv, with 0 of its 66"):
        read(header(0, 1))


@pytest.mark.parametrize(
    "version", [(11, 0, 0), (1001, 0, 0), (0, 1001, 0), (-1, 2, 0), (0, -2, 0), (0, 2, -1), (2**31 - 1, 0, 0)]
)
def test_an_implausible_version_is_no_darknet_file(version: tuple[int, int, int]) -> None:
    with pytest.raises(CheckpointError, match=r"is not a Darknet file: its header would have the version") as refusal:
        read(struct.pack("<iii", *version) + counting()[12:])
    assert ".".join(map(str, version)) in refusal.value.message
    assert "--num-classes" not in refusal.value.next_step


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04" + bytes(500), b"version https://git-lfs.github.com/spec/v1\n", b"<!DOCTYPE html>"]
)
def test_another_file_by_that_name_is_no_darknet_file(content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"mine\.weights is not a Darknet file"):
        read(content)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("position", "key"),
    [
        (0, "stem.bn.bias"),
        (BOUNDARIES[1] - 1, "stem.conv.weight"),
        (BOUNDARIES[2], "prediction.bias"),
        (-1, "last.conv.weight"),
    ],
)
def test_values_that_are_not_finite_name_their_layer(value: float, position: int, key: str) -> None:
    numbers = np.arange(BOUNDARIES[-1], dtype="<f4")
    numbers[position] = value
    with pytest.raises(CheckpointError, match=f"mine.weights contains NaN or infinite values, first in {key}$"):
        read(header() + numbers.tobytes())


@given(content=st.binary(max_size=800), version=st.sampled_from([b"", header()[:12], header(0, 1)[:12]]))
def test_any_bytes_are_weights_or_refused(content: bytes, version: bytes) -> None:
    try:
        loaded = read(version + content)
    except CheckpointError:
        return
    assert set(loaded) == set(SHAPES)
