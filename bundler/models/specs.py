"""ModelSpec: the properties of a variant that are known without importing its parser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from bundler.data.preprocessing import DEVIATION, MEAN, Fit, Interpolation, Pixels
from bundler.device.runner_json import ModeName as Mode
from bundler.device.runner_json import Task

__all__ = ["Int8Scope", "Mode", "ModelSpec", "Task"]

Int8Scope = Literal["backbone", "whole"]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A variant: its parser, and the preprocessing of its published weights.

    Args:
        name: of the variant on the command line.
        parser: "package.module:function" of the model parser function.
        resize: size of the resized image in pixels, as in `Preprocessing`.
        crop: size of the input in pixels: the side of a square, or (height, width).
        interpolation: of the resizing.
        fit: "crop" to the centre, "squash" the whole image, or "letterbox" it with grey borders.
        mean: of each channel in units of x/255; subtracted.
        std: of each channel in units of x/255; divided by.
        task: of the network.
        num_classes: the default.
    """

    modes: ClassVar[tuple[Mode, ...]] = ("fp32", "int8-ptq", "int8-qat")  # that a bundle can contain

    name: str
    parser: str
    resize: Pixels
    crop: Pixels
    interpolation: Interpolation = "bilinear"
    fit: Fit = "crop"
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = DEVIATION
    task: Task = "classification"
    num_classes: int = 1000

    @property
    def int8_scopes(self) -> tuple[Int8Scope, ...]:
        """The supported INT8 scopes, default first: a detector's backbone (docs/specification.md), or all but its decoding."""
        return ("backbone", "whole") if self.task == "detection" else ("whole",)
