"""BuildJob: what will be built. Pure: it refuses the impossible with the reason, and does nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from bundler.data.preprocessing import Pixels, Preprocessing
from bundler.errors import ImpossibleRequestError, ModeUnavailableError
from bundler.models.registry import ScopeRow, find_model
from bundler.models.specs import Int8Scope, Mode, ModelSpec
from bundler.preprocessing_request import AS_THE_WEIGHTS_ASK, PreprocessingRequest, choose_preprocessing
from bundler.targets import TargetProfile, find_target
from bundler.training_options import CLASSIFIERS, DETECTORS, TrainingRecipe

__all__ = ["BuildJob", "CalibrationRequest", "plan_build"]

# A registry with a port, the path of the repository, and the tag (distribution-spec 1.1, "Pulling manifests").
_REFERENCE = re.compile(
    r"(?P<repository>(?:[a-z0-9]+(?:[.-][a-z0-9]+)*(?::[0-9]{1,5})?/)?"
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
)
_LONGEST_REPOSITORY = 255

DEFAULT_MODES: tuple[Mode, ...] = ("fp32", "int8-ptq")
DARKNET = ("yolov3", "yolov4")  # whose weights a cfg describes


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
    cfg: Path | None
    weights_key: str | None
    num_classes: int | None
    preprocessing: Preprocessing
    calibration: CalibrationRequest
    data: Path | None
    max_drop: float | None
    recipe: TrainingRecipe
    base_image: str | None
    tag: str | None
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


def plan_build(
    model: str,
    target: str,
    *,
    modes: tuple[str, ...],
    int8_scope: Int8Scope | None,
    weights: str,
    weights_key: str | None = None,
    num_classes: int | None,
    input_size: Pixels | None,
    calibration: CalibrationRequest,
    data: Path | None,
    max_drop: float | None,
    epochs: int,
    learning_rate: float | None,
    base_image: str | None,
    tag: str | None,
    output: Path,
    seed: int,
    preprocessing: PreprocessingRequest = AS_THE_WEIGHTS_ASK,
    cfg: Path | None = None,
) -> BuildJob:
    """Make every choice that needs no file and no network.

    `input_size` sets the size of the input and, unless `preprocessing` has it, that of the resized picture; what neither asks
    for is as the variant's weights ask. Without `int8_scope`, of a detector the backbone becomes INT8. `data` holds pictures to
    measure accuracy on; an INT8 mode may lose up to `max_drop` percentage points: of top-1, of a detector's mAP, or without
    labels, of boxes that agree with FP32's. A training for INT8 takes `epochs`, and starts with the usual learning rate of
    classifiers or detectors where none is given. `tag` is the name of the device image,
    `cfg` Darknet's description of a yolov3 or yolov4.

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
    if cfg is not None and variant.name not in DARKNET:
        raise ImpossibleRequestError(
            f"--cfg describes a network of Darknet's, and {model} is none",
            next_step=f"Leave --cfg out: it is for {' and '.join(DARKNET)}.",
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
        cfg=cfg,
        weights_key=weights_key,
        num_classes=num_classes,
        preprocessing=choose_preprocessing(variant, preprocessing, input_size=input_size),
        calibration=calibration,
        data=data,
        max_drop=max_drop,
        recipe=replace(usual, epochs=epochs, learning_rate=learning_rate or usual.learning_rate),
        base_image=base_image,
        tag=None if tag is None else _image_reference(tag),
        output=output,
        seed=seed,
    )


def _image_reference(text: str) -> str:
    """Return `REPOSITORY:TAG`; the tag is `latest` where none is given."""
    found = _REFERENCE.fullmatch(text)
    if found is None or len(found["repository"]) > _LONGEST_REPOSITORY:
        raise ImpossibleRequestError(
            f"--tag must be the name of an image, REPOSITORY or REPOSITORY:TAG in lower case (got {text!r})",
            next_step="Give for instance --tag vision/mobilenet_v2:1.2.0.",
        )
    return f"{found['repository']}:{found['tag'] or 'latest'}"
