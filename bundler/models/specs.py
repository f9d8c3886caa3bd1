"""ModelSpec: what is known of a variant before anything is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from bundler.data.preprocessing import DEVIATION, MEAN, Fit, Interpolation, Pixels

__all__ = ["Int8Scope", "Mode", "ModelSpec", "Task"]

Mode = Literal["fp32", "int8-ptq", "int8-qat"]
Task = Literal["classification", "detection"]
Int8Scope = Literal["backbone", "whole"]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A variant: where its parser is, and what its weights ask of a picture.

    Args:
        name: of the variant, as it is typed.
        parser: "package.module:function" of the model parser function.
        resize: pixels of the resized picture, as `Preprocessing` has it.
        crop: pixels of the input: the side of a square, or height and width.
        interpolation: of the resizing.
        fit: "crop" the middle, "squash" the whole picture, or "letterbox" it on grey.
        mean: of RGB in 0..1, subtracted.
        std: of RGB, divided by.
        task: what the output says.
        num_classes: where nothing else is asked for.
    """

    modes: ClassVar[tuple[Mode, ...]] = ("fp32", "int8-ptq", "int8-qat")  # that a bundle can carry

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
        """How much can become INT8, the usual first: of a detector its backbone (specification), or all but its decoding."""
        return ("backbone", "whole") if self.task == "detection" else ("whole",)
