"""PreprocessingRequest: the preprocessing options of the command line, and their combination with a variant's defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bundler.data.preprocessing import Channels, Fit, Interpolation, Pixels, Preprocessing, height_and_width
from bundler.errors import ImpossibleRequestError
from bundler.models.specs import ModelSpec

__all__ = ["DEFAULT_PREPROCESSING_REQUEST", "PreprocessingRequest", "choose_preprocessing", "pixels_text", "values_text"]

Values = tuple[float, float, float]

SMALLEST_INPUT = 32  # pixels: all networks have a total stride of 32
LARGEST_INPUT = 4096  # pixels: 16 of its images take 3.2 GB as float32
LARGEST_STD = 2  # in units of x/255, from 0 to 1; in units of 0 to 255 it is 50 or more


@dataclass(frozen=True, kw_only=True)
class PreprocessingRequest:
    """Values of the options on the command line; None for omitted ones."""

    resize: Pixels | None = None
    crop: Pixels | None = None
    fit: Fit | None = None
    channels: Channels | None = None
    interpolation: Interpolation | None = None
    mean: Values | None = None
    std: Values | None = None


DEFAULT_PREPROCESSING_REQUEST = PreprocessingRequest()


def choose_preprocessing(variant: ModelSpec, request: PreprocessingRequest, *, input_size: Pixels | None) -> Preprocessing:
    """Return the variant's preprocessing with the changes of the request.

    A `resize` of (height, width) implies "squash" unless a fit is given, as in torchvision's `Resize((height, width))`.

    Args:
        variant: gives the defaults.
        request: the changes.
        input_size: size of the input in pixels, and of the resized image unless the request has one.

    Raises:
        ImpossibleRequestError: two options contradict each other, or a value is out of range.
    """
    _check_values(request)
    exact = isinstance(request.resize, tuple)
    fit: Fit = request.fit or ("squash" if exact and variant.fit == "crop" else variant.fit)
    resize, crop = _sizes(variant, request, fit, input_size)
    _check_input(variant, crop, "--crop" if request.crop is not None else "--input-size")
    return Preprocessing(
        resize=_short(resize),
        crop=_short(crop),
        interpolation=request.interpolation or variant.interpolation,
        fit=fit,
        channels=request.channels or "rgb",
        mean=request.mean or variant.mean,
        std=request.std or variant.std,
    )


def pixels_text(pixels: Pixels) -> str:
    """Format a size as on the command line: N, or HxW."""
    return str(pixels) if isinstance(pixels, int) else f"{pixels[0]}x{pixels[1]}"


def values_text(values: Values) -> str:
    """Format the values of three channels as on the command line: one number if all are equal."""
    return ",".join(f"{value:.9g}" for value in (values if len(set(values)) > 1 else values[:1]))


def _short(pixels: Pixels) -> Pixels:
    height, width = height_and_width(pixels)
    return height if height == width else (height, width)


def _sizes(variant: ModelSpec, request: PreprocessingRequest, fit: Fit, input_size: Pixels | None) -> tuple[Pixels, Pixels]:
    """Return the sizes of the resized image and of the input."""
    if variant.task == "detection" and fit == "crop" and variant.fit != "crop":
        raise ImpossibleRequestError(
            f"--fit crop is not supported for detectors ({variant.name}): it removes objects at the edges of an image",
            next_step="Pass --fit letterbox, or --fit squash.",
        )
    if fit == "letterbox":
        given = [name for name, value in (("--resize", request.resize), ("--crop", request.crop)) if value is not None]
        if given:
            raise ImpossibleRequestError(
                f"{' and '.join(given)} cannot be combined with --fit letterbox, which fits the whole image into the input"
                + ("" if request.fit else f" (the default of {variant.name})"),
                next_step="Pass only the size of the input (--input-size HxW), or --fit squash.",
            )
        size = input_size or variant.crop
        return size, size
    if input_size is not None and request.crop is not None and _short(input_size) != _short(request.crop):
        raise ImpossibleRequestError(
            f"--input-size {pixels_text(input_size)} and --crop {pixels_text(request.crop)} both set the size of the input,"
            " but differ",
            next_step="Pass one of them.",
        )
    squashed = request.resize if fit == "squash" else None
    crop = request.crop or input_size or squashed or variant.crop
    resize = request.resize or (crop if fit == "squash" or input_size is not None else variant.resize)
    pairs = zip(height_and_width(resize), height_and_width(crop), strict=True)
    if any(whole < part for whole, part in pairs):
        raise ImpossibleRequestError(
            f"an input of {pixels_text(crop)} pixels cannot be cropped from an image resized to {pixels_text(resize)}",
            next_step=f"Pass --resize {pixels_text(crop)} or more, or a smaller input with --crop"
            + (f" (the default of {variant.name} is {pixels_text(variant.crop)})." if crop == variant.crop else "."),
        )
    return resize, crop


def _check_input(variant: ModelSpec, size: Pixels, option: str) -> None:
    sides, text = height_and_width(size), pixels_text(_short(size))
    if min(sides) < SMALLEST_INPUT:
        raise ImpossibleRequestError(
            f"{option} must be at least {SMALLEST_INPUT} for {variant.name} (got {text})",
            next_step=f"Pass {option} {SMALLEST_INPUT} or more on both sides.",
        )
    if max(sides) > LARGEST_INPUT:
        raise ImpossibleRequestError(
            f"{option} must be at most {LARGEST_INPUT} (got {text})",
            next_step=f"Pass {option} {LARGEST_INPUT} or less on both sides.",
        )
    if variant.task == "detection" and any(side % SMALLEST_INPUT for side in sides):
        nearest = tuple(max(side // SMALLEST_INPUT, 1) * SMALLEST_INPUT for side in sides)
        raise ImpossibleRequestError(
            f"{option} must be a multiple of {SMALLEST_INPUT} for {variant.name} (got {text})",
            next_step=f"Pass {option} {pixels_text(_short((nearest[0], nearest[1])))}, for example.",
        )


def _check_values(request: PreprocessingRequest) -> None:
    """Refuse values that cannot be means or standard deviations of x/255, in particular those of pixels from 0 to 255."""
    for option, values in (("--mean", request.mean), ("--std", request.std)):
        if values is not None and not all(map(math.isfinite, values)):
            raise ImpossibleRequestError(
                f"{option} {values_text(values)} is not finite",
                next_step=f"Pass numbers: {option} 0.5, or {option} R,G,B.",
            )
    if request.std is not None and min(request.std) <= 0:
        raise ImpossibleRequestError(
            f"--std must be above 0 (got {values_text(request.std)})",
            next_step="Pass --std 1 if the training did not divide by a standard deviation.",
        )
    of_mean = request.mean is not None and max(map(abs, request.mean)) > 1
    of_std = request.std is not None and max(request.std) > LARGEST_STD
    if not of_mean and not of_std:
        return
    wrong, converted = [], []
    if request.mean is not None:
        wrong += [f"--mean {values_text(request.mean)}"] if of_mean else []
        converted.append(f"--mean {values_text(_divided(request.mean) if of_mean else request.mean)}")
    if request.std is not None:
        # Together with a mean of pixels from 0 to 255, a deviation of 1 is in the same units.
        of_std = of_std or (of_mean and max(request.std) >= 1)
        wrong += [f"--std {values_text(request.std)}"] if max(request.std) > LARGEST_STD else []
        converted.append(f"--std {values_text(_divided(request.std) if of_std else request.std)}")
    raise ImpossibleRequestError(
        f"{' and '.join(wrong)} {'seems' if len(wrong) == 1 else 'seem'} to be for pixels from 0 to 255, but pixels are divided"
        " by 255 first: means are from 0 to 1",
        next_step=f"Divide by 255: {' '.join(converted)}"
        + ("; add --std 0.00392156863 (1/255) if the training had no standard deviation" if request.std is None else ""),
    )


def _divided(values: Values) -> Values:
    red, green, blue = (value / 255 for value in values)
    return red, green, blue
