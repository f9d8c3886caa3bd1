from __future__ import annotations

import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bundler.data.preprocessing import DEVIATION, MEAN, Interpolation, Preprocessing
from bundler.errors import UnknownModelError, nearest
from bundler.models import torchvision_operators  # noqa: F401  before torchvision
from bundler.models.registry import SCOPE, find_model, load_parser, models

from torchvision.models import get_model_weights, list_models
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

# The specification's table, row by row.
ROWS = [
    *("ResNet18", "ResNet34", "ResNet50", "ResNet101", "ResNet152"),
    *("DenseNet121", "DenseNet161", "DenseNet169", "DenseNet201"),
    *("EfficientNetB0", "EfficientNetB1", "EfficientNetB2", "EfficientNetB3"),
    *("EfficientNetB4", "EfficientNetB5", "EfficientNetB6", "EfficientNetB7"),
    *("MobileNetV2", "MobileNetV3", "WideResNet50", "WideResNet101", "ResNext50", "ResNext101"),
    *("YoloV3", "YoloV4", "YoloV5"),
]

VARIANTS = {
    "ResNext101": ["resnext101_32x8d", "resnext101_64x4d"],
    "MobileNetV3": ["mobilenet_v3_large", "mobilenet_v3_small"],
    "WideResNet50": ["wide_resnet50_2"],
    "YoloV5": ["yolov5n", "yolov5s", "yolov5m", "yolov5l", "yolov5x"],
}
FROM_TORCHVISION = sorted(models().keys() & set(list_models()))

# Both divide by 255 and by the deviation in float32; values lie within ±3, whose last bit is 2.4e-7.
ROUNDING = 1e-6


def test_the_scope_is_the_specifications_table() -> None:
    assert len(ROWS) == 26
    assert [row.name for row in SCOPE] == ROWS
    scopes = {row.name: {variant.int8_scopes for variant in row.variants} for row in SCOPE}
    assert [name for name, found in scopes.items() if found == {("backbone", "whole")}] == ["YoloV3", "YoloV4", "YoloV5"]
    assert [name for name, found in scopes.items() if found == {("whole",)}] == ROWS[:-3]
    for name, variants in VARIANTS.items():
        assert [variant.name for row in SCOPE if row.name == name for variant in row.variants] == variants


def test_variant_names_are_unique() -> None:
    assert len(models()) == sum(len(row.variants) for row in SCOPE)


@pytest.mark.parametrize("name", models())
def test_every_parser_has_the_specifications_signature(name: str) -> None:
    """`(*, weights=None, progress=True, quantize=False, is_qat=False, **kwargs)`, and our `target`."""
    parser = load_parser(find_model(name)[1])
    assert parser.__name__ == name
    *named, rest = inspect.signature(parser).parameters.values()
    assert {parameter.kind for parameter in named} == {inspect.Parameter.KEYWORD_ONLY}
    assert {parameter.name: parameter.default for parameter in named} == {
        "weights": None,
        "progress": True,
        "quantize": False,
        "is_qat": False,
        "target": None,
    }
    assert rest.kind == inspect.Parameter.VAR_KEYWORD


def test_every_classifier_is_torchvisions() -> None:
    assert sorted(name for name in models() if not name.startswith("yolo")) == FROM_TORCHVISION


@pytest.mark.parametrize("name", FROM_TORCHVISION)
def test_preprocessing_is_that_of_the_published_weights(name: str) -> None:
    transforms = get_model_weights(name).DEFAULT.transforms()
    _, variant = models()[name]
    assert [variant.resize] == transforms.resize_size
    assert [variant.crop] == transforms.crop_size
    assert variant.interpolation == transforms.interpolation.value
    assert list(MEAN) == transforms.mean
    assert list(DEVIATION) == transforms.std


@pytest.mark.parametrize(
    ("mode", "size"), [("RGB", (90, 61)), ("L", (61, 90)), ("RGBA", (75, 75)), ("P", (40, 33)), ("1", (90, 80))]
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_an_image_becomes_the_numbers_that_torchvision_makes(
    mode: str, size: tuple[int, int], interpolation: Interpolation
) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    assert_same_numbers(Image.fromarray(pixels).convert(mode), resize=64, crop=56, interpolation=interpolation)


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    resize=st.integers(8, 48),
    margin=st.integers(0, 7),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_images_of_any_size_become_the_numbers_that_torchvision_makes(
    width: int, height: int, resize: int, margin: int, interpolation: Interpolation
) -> None:
    pixels = np.random.default_rng(width * 100 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert_same_numbers(Image.fromarray(pixels), resize=resize, crop=resize - margin, interpolation=interpolation)


def assert_same_numbers(picture: Image.Image, *, resize: int, crop: int, interpolation: Interpolation) -> None:
    preset = ImageClassification(crop_size=crop, resize_size=resize, interpolation=InterpolationMode(interpolation))
    theirs = preset(picture.convert("RGB"))  # torchvision's own loader converts as well
    ours = torch.from_numpy(Preprocessing(resize=resize, crop=crop, interpolation=interpolation)(picture))
    assert theirs.std() > 0 or min(picture.size) == 1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("ResNet-50", "resnet50"), ("mobilenetv2", "mobilenet_v2"), ("resnet8", "resnet18"), ("YOLOv5s", "yolov5s")],
)
def test_a_misspelt_model_is_refused_with_the_nearest_names(typed: str, meant: str) -> None:
    with pytest.raises(UnknownModelError) as refusal:
        find_model(typed)
    assert typed in refusal.value.message
    assert meant in refusal.value.next_step
    assert refusal.value.exit_code == 4


def test_every_variant_is_found_with_its_row_and_is_built() -> None:
    for row in SCOPE:
        for variant in row.variants:
            assert find_model(variant.name) == (row, variant)
            assert load_parser(variant).__name__ == variant.name


@given(
    name=st.sampled_from(sorted(models())),
    uppercase=st.lists(st.booleans(), min_size=20, max_size=20),
    separator=st.sampled_from("-_ ."),
)
def test_case_and_separators_do_not_matter_to_the_nearest_name(name: str, uppercase: list[bool], separator: str) -> None:
    typed = "".join(character.upper() if up else character for character, up in zip(name, uppercase, strict=False))
    assert f" {name}" in nearest(typed.replace("_", separator), models()).replace("?", " ")


@given(st.text(max_size=30))
def test_the_nearest_names_are_known_ones_or_none(typed: str) -> None:
    answer = nearest(typed, models())
    if answer:
        named = answer.removeprefix("Did you mean ").removesuffix("?").split(" or ")
        assert 1 <= len(named) <= 3
        assert set(named) <= models().keys()


def test_the_registry_needs_no_torch() -> None:
    code = "import sys, bundler.models.registry; sys.exit('torch' in sys.modules or 'torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
