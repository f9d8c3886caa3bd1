"""Preprocessing: converts an image of any size to a network's input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = [
    "DEVIATION",
    "MEAN",
    "Channels",
    "Fit",
    "Interpolation",
    "Pixels",
    "Preprocessing",
    "height_and_width",
    "opencv_bilinear",
]

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, on which torchvision's weights were trained
DEVIATION = (0.229, 0.224, 0.225)
GREY = (114, 114, 114)  # borders of a letterboxed image, as in the training of YOLOv5

Channels = Literal["rgb", "bgr"]
Fit = Literal["crop", "squash", "letterbox"]
Interpolation = Literal["nearest", "box", "bilinear", "bicubic", "lanczos", "opencv-bilinear"]
Pixels = int | tuple[int, int]  # the side of a square, or height and width

COEFFICIENT_BITS = 11  # OpenCV's INTER_RESIZE_COEF_BITS


def height_and_width(pixels: Pixels) -> tuple[int, int]:
    return (pixels, pixels) if isinstance(pixels, int) else pixels


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize and crop an image to a network's input, then normalise it: (x/255 - mean) / std.

    Args:
        resize: size in pixels, depending on `fit`; not used by "letterbox".
        crop: size of the input in pixels.
        interpolation: one of Pillow's resampling filters, all of which average over the source pixels when they shrink; or
            "opencv-bilinear", OpenCV's INTER_LINEAR on 8-bit pixels, which does not.
        fit: "crop" resizes with unchanged proportions to the smallest size that covers `resize` (for a square, the shorter
            side becomes that long) and takes `crop` pixels from the middle; "squash" resizes to exactly `resize` and takes
            `crop` pixels from the middle; "letterbox" resizes with unchanged proportions to the largest size that lies within
            `crop` and centres it on grey.
        channels: order of the input's channels.
        mean: of each channel in that order, in units of x/255.
        std: of each channel in that order, in units of x/255.
    """

    resize: Pixels
    crop: Pixels
    interpolation: Interpolation
    fit: Fit = "crop"
    channels: Channels = "rgb"
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = DEVIATION

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the input."""
        return height_and_width(self.crop)

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Return float32 [3, height, width]; with "crop", the values of torchvision's `ImageClassification` preset."""
        fitted = self._fitted(image.convert("RGB"))
        pixels = np.asarray(fitted, dtype=np.float32) / np.float32(255)
        if self.channels == "bgr":
            pixels = pixels[:, :, ::-1]
        normalised = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(normalised.transpose(2, 0, 1))

    def frame(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return the area of an image of `width` x `height` in the input: left, top, width and height in pixels.

        Left and top are negative if a part of the image is cropped.
        """
        input_height, input_width = self.input_size
        new_width, new_height = self._resized_size(width, height)
        if self.fit == "letterbox":
            return (input_width - new_width) // 2, (input_height - new_height) // 2, new_width, new_height
        return -round((new_width - input_width) / 2), -round((new_height - input_height) / 2), new_width, new_height

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        if self.fit == "letterbox":
            input_height, input_width = self.input_size
            scale = min(input_width / width, input_height / height)
            return max(round(width * scale), 1), max(round(height * scale), 1)
        target_height, target_width = height_and_width(self.resize)
        if self.fit == "squash":
            return target_width, target_height
        if target_height * width >= target_width * height:
            return int(target_height * width / height), target_height
        return target_width, int(target_width * height / width)

    def _fitted(self, image: Image.Image) -> Image.Image:
        input_height, input_width = self.input_size
        left, top, width, height = self.frame(*image.size)
        if self.interpolation == "opencv-bilinear":
            image = Image.fromarray(opencv_bilinear(np.asarray(image), width, height))
        else:
            image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        if self.fit != "letterbox":
            return image.crop((-left, -top, input_width - left, input_height - top))
        canvas = Image.new("RGB", (input_width, input_height), GREY)
        canvas.paste(image, (left, top))
        return canvas


def opencv_bilinear(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Resize uint8 [H, W, C] to [height, width, C] as OpenCV's `resize(…, interpolation=INTER_LINEAR)` does, bit for bit.

    OpenCV interpolates between the two nearest rows and columns in fixed point, however much it shrinks, and averages 2 x 2
    pixels if both sides are halved exactly (modules/imgproc/src/resize.cpp; equal to cv2 4.10 and 5.0 on x86-64).
    """
    old_height, old_width = pixels.shape[:2]
    if (old_width, old_height) == (width, height):
        return pixels
    if (old_width, old_height) == (2 * width, 2 * height):
        four: NDArray[np.int32] = pixels.reshape(height, 2, width, 2, -1).sum((1, 3), dtype=np.int32)
        return (four + 2 >> 2).astype(np.uint8)
    left, right, left_weights, right_weights = _neighbours(old_width, width, inside=True)
    above, below, upper_weights, lower_weights = _neighbours(old_height, height, inside=False)
    rows = pixels[:, left].astype(np.int32) * left_weights[:, None] + pixels[:, right].astype(np.int32) * right_weights[:, None]
    rows >>= 4
    upper = rows[above] * upper_weights[:, None, None] >> 16
    lower = rows[below] * lower_weights[:, None, None] >> 16
    return (upper + lower + 2 >> 2).clip(0, 255).astype(np.uint8)


def _neighbours(old: int, new: int, *, inside: bool) -> tuple[NDArray[np.int32], ...]:
    """Return the two source pixels of each new pixel along an axis, and their weights, which add up to 2048.

    `inside`: along rows, OpenCV gives the weight of pixels beyond the edge to the pixel inside; along columns it does not.
    """
    positions = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    first = np.floor(positions)
    share = positions - first
    if inside:
        share[(first < 0) | (first >= old - 1)] = 0
    one = np.float32(1 << COEFFICIENT_BITS)
    places = (place.astype(np.int32).clip(0, old - 1) for place in (first, first + 1))
    return (*places, *(np.rint(weight).astype(np.int32) for weight in ((1 - share) * one, share * one)))
