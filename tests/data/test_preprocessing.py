"""How an image becomes an input: sizes, proportions, channels, interpolation, and where an image lies in it."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from bundler.data.preprocessing import Fit, Interpolation, Preprocessing, opencv_bilinear
from bundler.models import torchvision_operators  # noqa: F401  before torchvision

from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def noise(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(values * 255).astype(np.uint8).transpose(1, 2, 0)


@pytest.mark.parametrize("size", [(61, 47), (47, 61), (40, 40), (300, 33)])
@pytest.mark.parametrize(
    ("resize", "crop", "fit"),
    [(40, 32, "crop"), ((40, 48), (32, 40), "squash"), ((36, 52), (36, 52), "squash"), (40, (24, 36), "crop")],
)
@pytest.mark.parametrize("interpolation", ["nearest", "box", "bilinear", "bicubic", "lanczos"])
def test_the_sizes_and_filters_are_torchvisions(
    size: tuple[int, int], resize: int | tuple[int, int], crop: int | tuple[int, int], fit: Fit, interpolation: Interpolation
) -> None:
    picture = Image.fromarray(noise(*size))
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    ours = Preprocessing(resize=resize, crop=crop, fit=fit, interpolation=interpolation, mean=mean, std=std)(picture)
    steps = [Resize(resize, InterpolationMode(interpolation)), CenterCrop(crop), ToTensor(), Normalize(mean, std)]
    theirs = Compose(steps)(picture)
    torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("size", "frame"), [((100, 50), (-16, 0, 128, 64)), ((50, 100), (0, -64, 96, 192)), ((96, 64), (0, 0, 96, 64))]
)
def test_an_input_that_is_not_square_is_covered_and_the_middle_taken(
    size: tuple[int, int], frame: tuple[int, int, int, int]
) -> None:
    pixels = noise(*size)
    given = Preprocessing(resize=(64, 96), crop=(64, 96), interpolation="bilinear", **PLAIN)
    assert given.frame(*size) == frame
    left, top = -frame[0], -frame[1]
    expected = np.asarray(Image.fromarray(pixels).resize(frame[2:], Image.Resampling.BILINEAR))[
        top : top + 64, left : left + 96
    ]
    np.testing.assert_array_equal(as_bytes(given(Image.fromarray(pixels))), expected)


@pytest.mark.parametrize(
    ("size", "frame"), [((100, 50), (0, 8, 96, 48)), ((50, 100), (32, 0, 32, 64)), ((96, 64), (0, 0, 96, 64))]
)
def test_a_letterbox_that_is_not_square_holds_the_whole_image(size: tuple[int, int], frame: tuple[int, ...]) -> None:
    pixels = noise(*size)
    given = Preprocessing(resize=(64, 96), crop=(64, 96), fit="letterbox", interpolation="bilinear", **PLAIN)
    assert given.frame(*size) == frame
    left, top, width, height = frame
    expected = np.full((64, 96, 3), 114, np.uint8)
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    expected[top : top + height, left : left + width] = np.asarray(resized)
    np.testing.assert_array_equal(as_bytes(given(Image.fromarray(pixels))), expected)


def test_the_channels_are_turned_before_mean_and_std() -> None:
    red = Image.new("RGB", (8, 8), (255, 51, 0))
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.4, 0.2)
    turned = Preprocessing(resize=8, crop=8, interpolation="bilinear", channels="bgr", mean=mean, std=std)(red)
    assert turned[:, 0, 0] == pytest.approx([(0 - 0.1) / 0.5, (0.2 - 0.2) / 0.4, (1 - 0.3) / 0.2], abs=1e-6)


# Digests of cv2.resize(noise(*old, seed), new, interpolation=cv2.INTER_LINEAR), the same in opencv-python-headless 4.10.0 and
# 5.0.0 on x86-64; 2,505 other sizes were equal too.
OPENCV = [
    ((97, 61), (40, 25), "b38557fc91290b14"),
    ((97, 61), (150, 200), "ec0df88be3299373"),
    ((64, 48), (32, 24), "7fcbf94f6fb3013c"),
    ((64, 48), (32, 48), "e25000fb56646ab5"),
    ((64, 48), (64, 48), "7e870af5b4fab22d"),
    ((1, 1), (5, 7), "f46f38b9df8d6390"),
    ((1, 40), (6, 3), "289e49985b42e5fb"),
    ((301, 3), (64, 1), "7b224ecb350119f9"),
    ((640, 427), (416, 278), "0d09debfaaa2c57d"),
    ((5, 5), (1, 1), "ec344767375a41dc"),
    ((2, 2), (1, 1), "770248bb02f762a4"),
    ((33, 65), (32, 64), "e94708f963ebd18b"),
    ((33, 64), (16, 32), "01492216af1af76e"),
]


@pytest.mark.parametrize(("old", "new", "digest"), OPENCV)
def test_opencvs_interpolation_bit_for_bit(old: tuple[int, int], new: tuple[int, int], digest: str) -> None:
    resized = opencv_bilinear(noise(*old, seed=7), *new)
    assert resized.shape == (new[1], new[0], 3)
    assert hashlib.sha256(resized.tobytes()).hexdigest()[:16] == digest


def test_opencvs_interpolation_does_not_average_when_it_shrinks() -> None:
    stripes = np.zeros((90, 90, 3), np.uint8)
    stripes[:, 1::3] = 255  # of three columns, the middle one
    given: dict[str, Any] = {"resize": 30, "crop": 30, **PLAIN}
    sampled = Preprocessing(interpolation="opencv-bilinear", **given)(Image.fromarray(stripes))
    averaged = Preprocessing(interpolation="bilinear", **given)(Image.fromarray(stripes))
    assert sampled.min() == 1
    assert averaged.max() < 0.6
