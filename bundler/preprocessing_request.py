"""PreprocessingRequest: what was asked for in place of a variant's usual preprocessing, and what that makes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bundler.data.preprocessing import Channels, Fit, Interpolation, Pixels, Preprocessing, height_and_width
from bundler.errors import ImpossibleRequestError
from bundler.models.specs import ModelSpec

__all__ = ["AS_THE_WEIGHTS_ASK", "PreprocessingRequest", "choose_preprocessing", "pixels_text", "values_text"]

Values = tuple[float, float, float]

SMALLEST_INPUT = 32  # pixels: every network here reduces its input 32 times
LARGEST_INPUT = 4096  # pixels: 16 of its pictures take 3.2 GB as float32
LARGEST_STD = 2  # in units of x/255, where values lie between 0 and 1; in units of 0..255 it is 50 or more


@dataclass(frozen=True, kw_only=True)
class PreprocessingRequest:
    """What stands on the command line; None for what does not."""

    resize: Pixels | None = None
    crop: Pixels | None = None
    fit: Fit | None = None
    channels: Channels | None = None
    interpolation: Interpolation | None = None
    mean: Values | None = None
    std: Values | None = None


AS_THE_WEIGHTS_ASK = PreprocessingRequest()


def choose_preprocessing(variant: ModelSpec, request: PreprocessingRequest, *, input_size: Pixels | None) -> Preprocessing:
    """Return the variant's preprocessing with what the request changes in it.

    `input_size` sets the size of the input and, unless the request has it, that of the resized picture. A `resize` of height
    and width means "squash" unless a fit is given, as in torchvision's `Resize((height, width))`.

    Raises:
        ImpossibleRequestError: two options contradict each other, or a number is out of range.
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
    """Return pixels as they are typed: N, or HxW."""
    return str(pixels) if isinstance(pixels, int) else f"{pixels[0]}x{pixels[1]}"


def values_text(values: Values) -> str:
    """Return the values of three channels as they are typed: one number where all three are the same."""
    return ",".join(f"{value:.9g}" for value in (values if len(set(values)) > 1 else values[:1]))


def _short(pixels: Pixels) -> Pixels:
    height, width = height_and_width(pixels)
    return height if height == width else (height, width)


def _sizes(variant: ModelSpec, request: PreprocessingRequest, fit: Fit, input_size: Pixels | None) -> tuple[Pixels, Pixels]:
    """Return the size to resize to and that of the input."""
    if variant.task == "detection" and fit == "crop" and variant.fit != "crop":
        raise ImpossibleRequestError(
            "--fit crop cuts off what lies at a picture's edges, and a detector is meant to find that too",
            next_step="Give --fit letterbox, or --fit squash.",
        )
    if fit == "letterbox":
        given = [name for name, value in (("--resize", request.resize), ("--crop", request.crop)) if value is not None]
        if given:
            raise ImpossibleRequestError(
                f"{' and '.join(given)} cannot be combined with --fit letterbox, which fits the whole picture into the input"
                + ("" if request.fit else f" (the default of {variant.name})"),
                next_step="Give the size of the input alone (--input-size HxW), or --fit squash.",
            )
        size = input_size or variant.crop
        return size, size
    if input_size is not None and request.crop is not None and _short(input_size) != _short(request.crop):
        raise ImpossibleRequestError(
            f"--input-size {pixels_text(input_size)} and --crop {pixels_text(request.crop)} are both the size of the input,"
            " and differ",
            next_step="Give one of them.",
        )
    squashed = request.resize if fit == "squash" else None
    crop = request.crop or input_size or squashed or variant.crop
    resize = request.resize or (crop if fit == "squash" or input_size is not None else variant.resize)
    pairs = zip(height_and_width(resize), height_and_width(crop), strict=True)
    if any(whole < part for whole, part in pairs):
        raise ImpossibleRequestError(
            f"an input of {pixels_text(crop)} pixels cannot be cut from a picture that is resized to {pixels_text(resize)}",
            next_step=f"Give --resize {pixels_text(crop)} or more, or a smaller input with --crop"
            + (f" (the default of {variant.name} is {pixels_text(variant.crop)})." if crop == variant.crop else "."),
        )
    return resize, crop


def _check_input(variant: ModelSpec, size: Pixels, option: str) -> None:
    sides, text = height_and_width(size), pixels_text(_short(size))
    if min(sides) < SMALLEST_INPUT:
        raise ImpossibleRequestError(
            f"an input of {text} pixels is too small for {variant.name}",
            next_step=f"Give {option} {SMALLEST_INPUT} or more on both sides.",
        )
    if max(sides) > LARGEST_INPUT:
        raise ImpossibleRequestError(
            f"an input of {text} pixels is too large: {LARGEST_INPUT} on a side are supported",
            next_step=f"Give {option} {LARGEST_INPUT} or less on both sides.",
        )
    if variant.task == "detection" and any(side % SMALLEST_INPUT for side in sides):
        nearest = tuple(max(side // SMALLEST_INPUT, 1) * SMALLEST_INPUT for side in sides)
        raise ImpossibleRequestError(
            f"{option} must be a multiple of {SMALLEST_INPUT} for {variant.name} (got {text})",
            next_step=f"For example: {option} {pixels_text(_short((nearest[0], nearest[1])))}.",
        )


def _check_values(request: PreprocessingRequest) -> None:
    """Refuse what is no mean or standard deviation of x/255, above all those of pixels from 0 to 255."""
    for option, values in (("--mean", request.mean), ("--std", request.std)):
        if values is not None and not all(map(math.isfinite, values)):
            raise ImpossibleRequestError(
                f"{option} {values_text(values)} is not finite", next_step=f"Give numbers: {option} 0.5, or {option} R,G,B."
            )
    if request.std is not None and min(request.std) <= 0:
        raise ImpossibleRequestError(
            f"--std {values_text(request.std)}: a standard deviation is above 0",
            next_step="Give --std 1 where the training did not divide by one.",
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
        # Beside a mean of pixels from 0 to 255, a deviation of 1 is meant in their units too: nothing is divided.
        of_std = of_std or (of_mean and max(request.std) >= 1)
        wrong += [f"--std {values_text(request.std)}"] if max(request.std) > LARGEST_STD else []
        converted.append(f"--std {values_text(_divided(request.std) if of_std else request.std)}")
    raise ImpossibleRequestError(
        f"{' and '.join(wrong)} {'seems' if len(wrong) == 1 else 'seem'} to be for pixels from 0 to 255; pixels are divided by"
        " 255 first, so that a mean lies between 0 and 1",
        next_step=f"Divide by 255: {' '.join(converted)}"
        + ("; with --std 0.00392156863 (1/255) where the training divided by nothing" if request.std is None else ""),
    )


def _divided(values: Values) -> Values:
    red, green, blue = (value / 255 for value in values)
    return red, green, blue
