"""BuildJob: what will be built. Pure: it refuses the impossible with the reason, and does nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from bundler.datasets import Preprocessing
from bundler.errors import ImpossibleRequestError, ModeUnavailableError
from bundler.models.registry import ScopeRow, find_model
from bundler.models.specs import Int8Scope, Mode, ModelSpec
from bundler.recipe import CLASSIFIERS, DETECTORS, TrainingRecipe
from bundler.targets import TargetProfile, find_target

__all__ = ["BuildJob", "CalibrationRequest", "plan_build"]

DEFAULT_MODES: tuple[Mode, ...] = ("fp32", "int8-ptq")
SMALLEST_INPUT = 32  # pixels: every network here reduces its input 32 times


@dataclass(frozen=True, kw_only=True)
class CalibrationRequest:
    """Which pictures calibrate: a folder, or None for synthetic ones; how many, and how many at a time."""

    folder: Path | None
    pictures: int
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class BuildJob:
    """One model for one target, with every choice made."""

    row: ScopeRow
    variant: ModelSpec
    target: TargetProfile
    modes: tuple[Mode, ...]
    int8_scope: Int8Scope
    weights: str
    weights_key: str | None
    num_classes: int | None
    preprocessing: Preprocessing
    calibration: CalibrationRequest
    data: Path | None
    max_drop: float | None
    recipe: TrainingRecipe
    base_image: str | None
    output: Path
    seed: int

    @property
    def identifier(self) -> str:
        """The bundle's name in logs, labels and the manifest."""
        return f"{self.variant.name}-{self.target.name}"

    @property
    def directory(self) -> Path:
        return self.output / self.target.name / self.variant.name

    @property
    def archive(self) -> Path:
        return self.output / self.target.name / f"{self.variant.name}.tar.gz"

    @property
    def image_reference(self) -> str:
        return f"{self.variant.name}:{self.target.name}"


def plan_build(
    model: str,
    target: str,
    *,
    modes: tuple[str, ...],
    int8_scope: Int8Scope | None,
    weights: str,
    weights_key: str | None = None,
    num_classes: int | None,
    input_size: int | None,
    calibration: CalibrationRequest,
    data: Path | None,
    max_drop: float | None,
    epochs: int,
    learning_rate: float | None,
    base_image: str | None,
    output: Path,
    seed: int,
) -> BuildJob:
    """Make every choice that needs no file and no network.

    With `input_size`, a picture's shorter side is resized to that many pixels and nothing but the overhang is cropped; for a
    detector, the whole picture is fitted into that many. Without `int8_scope`, of a detector the backbone becomes INT8.
    `data` holds pictures to measure accuracy on; an INT8 mode may lose up to `max_drop` percentage points: of top-1, of a
    detector's mAP, or without labels, of boxes that agree with FP32's. A training for INT8 takes `epochs`, and starts with the
    usual learning rate of classifiers or detectors where none is given.

    Raises:
        UnknownModelError, UnknownTargetError: with the nearest names.
        ModeUnavailableError: the model does not have one of the modes.
        ImpossibleRequestError: a number that no network can take.
    """
    row, variant = find_model(model)
    profile = find_target(target)
    chosen = tuple(mode for mode in variant.modes if mode in (modes or DEFAULT_MODES))
    for asked in modes:
        if asked not in variant.modes:
            raise ModeUnavailableError(model, asked, "there is no such mode", variant.modes)
    if int8_scope is not None and int8_scope not in variant.int8_scopes:
        raise ImpossibleRequestError(
            f"{model} has no backbone apart from the rest; its INT8 is the whole network",
            next_step="Leave --int8-scope out: it is for detectors.",
        )
    if input_size is not None and variant.task == "detection" and input_size % SMALLEST_INPUT:
        raise ImpossibleRequestError(
            f"{model} looks at {SMALLEST_INPUT} pixels at a time, and {input_size} is no multiple of that",
            next_step=f"Give --input-size {max(input_size // SMALLEST_INPUT, 1) * SMALLEST_INPUT}, for instance.",
        )
    if input_size is not None and input_size < SMALLEST_INPUT:
        raise ImpossibleRequestError(
            f"an input of {input_size} pixels is too small for {model}",
            next_step=f"Give --input-size {SMALLEST_INPUT} or more.",
        )
    if weights_key is not None and weights in ("auto", "pretrained", "random"):
        raise ImpossibleRequestError(
            f"--weights-key chooses among the weights in a file, and --weights is {weights}",
            next_step="Leave --weights-key out, or give --weights FILE.",
        )
    usual = DETECTORS if variant.task == "detection" else CLASSIFIERS
    fewest = 1 if variant.task == "detection" else 2
    if num_classes is not None and num_classes < fewest:
        raise ImpossibleRequestError(
            f"{num_classes} classes leave nothing to tell apart", next_step=f"Give --num-classes {fewest} or more."
        )
    if "int8-qat" in chosen and data is None:
        raise ImpossibleRequestError(
            "int8-qat learns from pictures, and none are given",
            next_step="Give --data DIR, with train/ and val/ in it, or "
            + ("pictures alone." if variant.task == "detection" else "one sub-folder for each class."),
        )
    if max_drop is not None and data is None:
        raise ImpossibleRequestError("--max-drop has no pictures to measure accuracy on", next_step="Give some: --data DIR.")
    return BuildJob(
        row=row,
        variant=variant,
        target=profile,
        modes=chosen,
        int8_scope=int8_scope or variant.int8_scopes[0],
        weights=weights,
        weights_key=weights_key,
        num_classes=num_classes,
        preprocessing=Preprocessing(
            resize=input_size or variant.resize,
            crop=input_size or variant.crop,
            interpolation=variant.interpolation,
            fit=variant.fit,
            mean=variant.mean,
            std=variant.std,
        ),
        calibration=calibration,
        data=data,
        max_drop=max_drop,
        recipe=replace(usual, epochs=epochs, learning_rate=learning_rate or usual.learning_rate),
        base_image=base_image,
        output=output,
        seed=seed,
    )
