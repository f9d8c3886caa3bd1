"""What may be asked for in place of the usual preprocessing, what follows from it, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bundler.data.preprocessing import DEVIATION, MEAN, Pixels, Preprocessing
from bundler.errors import ImpossibleRequestError
from bundler.models.registry import find_model
from bundler.models.specs import ModelSpec
from bundler.preprocessing_request import PreprocessingRequest, choose_preprocessing


def spec(name: str) -> ModelSpec:
    return find_model(name)[1]


def choose(model: str = "resnet18", input_size: Pixels | None = None, **asked: Any) -> Preprocessing:
    return choose_preprocessing(spec(model), PreprocessingRequest(**asked), input_size=input_size)


def test_nothing_asked_for_is_as_the_weights_ask() -> None:
    assert choose() == Preprocessing(resize=256, crop=224, interpolation="bilinear", fit="crop", mean=MEAN, std=DEVIATION)
    detector = choose("yolov5n")
    assert (detector.fit, detector.resize, detector.crop, detector.mean) == ("letterbox", 640, 640, (0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("asked", "fit", "resize", "crop"),
    [
        ({"input_size": 64}, "crop", 64, 64),
        ({"input_size": (224, 160)}, "crop", (224, 160), (224, 160)),
        ({"input_size": (64, 64)}, "crop", 64, 64),
        ({"resize": 72, "crop": 64}, "crop", 72, 64),
        ({"resize": 72, "input_size": 64}, "crop", 72, 64),
        ({"crop": 192}, "crop", 256, 192),
        ({"crop": (192, 128)}, "crop", 256, (192, 128)),
        ({"resize": (64, 96)}, "squash", (64, 96), (64, 96)),  # torchvision's Resize((64, 96))
        ({"resize": (64, 64)}, "squash", 64, 64),
        ({"resize": (256, 256), "crop": 224}, "squash", 256, 224),
        ({"resize": (72, 100), "fit": "crop", "crop": 64}, "crop", (72, 100), 64),
        ({"fit": "squash"}, "squash", 224, 224),
        ({"fit": "squash", "input_size": (64, 96)}, "squash", (64, 96), (64, 96)),
        ({"fit": "letterbox", "input_size": (64, 96)}, "letterbox", (64, 96), (64, 96)),
        ({"model": "yolov5n", "input_size": (384, 640)}, "letterbox", (384, 640), (384, 640)),
        ({"model": "yolov5n", "fit": "squash", "input_size": (384, 640)}, "squash", (384, 640), (384, 640)),
        ({"model": "yolov5n", "fit": "squash"}, "squash", 640, 640),
    ],
)
def test_sizes_follow_from_each_other(asked: dict[str, Any], fit: str, resize: Pixels, crop: Pixels) -> None:
    chosen = choose(**asked)
    assert (chosen.fit, chosen.resize, chosen.crop) == (fit, resize, crop)


def test_values_channels_and_interpolation_are_taken_over() -> None:
    chosen = choose(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), channels="bgr", interpolation="opencv-bilinear")
    expected = replace(choose(), mean=(0.0,) * 3, std=(1.0,) * 3, channels="bgr", interpolation="opencv-bilinear")
    assert chosen == expected


@pytest.mark.parametrize(
    ("asked", "words", "next_step"),
    [
        ({"mean": (123.675, 116.28, 103.53)}, "for pixels from 0 to 255", "--mean 0.485,0.456,0.406"),
        (
            {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
            "--mean 123.675,116.28,103.53 and --std 58.395,57.12,57.375 seem",
            "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
        ),
        ({"mean": (127.5,) * 3, "std": (127.5,) * 3}, "0 to 255", "--mean 0.5 --std 0.5"),
        ({"mean": (0.0,) * 3, "std": (255.0,) * 3}, "--std 255 seems", "--mean 0 --std 1"),
        # Caffe's: pixels from 0 to 255 without their mean, not divided by anything
        ({"mean": (103.939, 116.779, 123.68), "std": (1.0,) * 3}, "0 to 255", "--std 0.00392156863"),
        ({"std": (0.0, 1.0, 1.0)}, "above 0", "--std 1"),
        ({"std": (-1.0,) * 3}, "above 0", "--std 1"),
        ({"mean": (float("nan"),) * 3}, "not finite", "--mean 0.5"),
        ({"std": (float("inf"),) * 3}, "not finite", "--std 0.5"),
        ({"input_size": 64, "crop": 32}, "both set the size of the input", "one of them"),
        ({"resize": 128}, "224 pixels cannot be cropped from an image resized to 128", "--crop"),
        ({"resize": (256, 100), "crop": 128}, "resized to 256x100", "--resize 128"),
        ({"fit": "letterbox", "crop": 64}, "--crop cannot be combined with --fit letterbox", "--input-size"),
        ({"fit": "letterbox", "resize": 64, "crop": 64}, "--resize and --crop", "--input-size"),
        ({"model": "yolov5n", "resize": (640, 640)}, "the default of yolov5n", "--fit squash"),
        ({"model": "yolov5n", "fit": "crop"}, "is not supported for detectors", "--fit letterbox"),
        ({"model": "yolov5n", "input_size": (640, 380)}, "multiple of 32 for yolov5n", "--input-size 640x352"),
        ({"model": "yolov5n", "fit": "squash", "crop": 100}, "--crop must be a multiple of 32", "--crop 96"),
    ],
)
def test_the_impossible_is_refused(asked: dict[str, Any], words: str, next_step: str) -> None:
    with pytest.raises(ImpossibleRequestError, match=words) as caught:
        choose(**asked)
    assert next_step in caught.value.next_step
