"""BuildJob: what will be built, from the options of `bundler bundle`; impossible requests are refused here."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from bundler.data.preprocessing import Pixels, Preprocessing
from bundler.errors import ImpossibleRequestError, ModeUnavailableError
from bundler.models.registry import ScopeRow, find_model
from bundler.models.specs import Int8Scope, Mode, ModelSpec
from bundler.preprocessing_request import DEFAULT_PREPROCESSING_REQUEST, PreprocessingRequest, choose_preprocessing
from bundler.targets import TargetProfile, find_target
from bundler.training_options import CLASSIFIERS, DETECTORS, TrainingOptions

__all__ = [
    "AccuracyRequest",
    "BuildJob",
    "BuildRequest",
    "CalibrationRequest",
    "DeviceImageRequest",
    "PtqRequest",
    "QatRequest",
    "WeightsRequest",
    "plan_build",
]

# A registry with a port, the path of the repository, and the tag (distribution-spec 1.1, "Pulling manifests").
_REFERENCE = re.compile(
    r"(?P<repository>(?:[a-z0-9]+(?:[.-][a-z0-9]+)*(?::[0-9]{1,5})?/)?"
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
)
_LONGEST_REPOSITORY = 255

DEFAULT_MODES: tuple[Mode, ...] = ("fp32", "int8-ptq")
DARKNET = ("yolov3", "yolov4")  # of whose weights a cfg file gives the network


@dataclass(frozen=True, kw_only=True)
class CalibrationRequest:
    """Calibration images: a folder, or None for synthetic ones; how many, and the batch size."""

    folder: Path | None
    pictures: int
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class WeightsRequest:
    """Weights: `auto`, `pretrained`, `random` or a file; which weights of the file; the file's classes; Darknet's cfg file."""

    source: str
    key: str | None = None
    num_classes: int | None = None
    cfg: Path | None = None


@dataclass(frozen=True, kw_only=True)
class DeviceImageRequest:
    """The device image: the image that it is based on instead of Debian's packages, and its name in the engine."""

    base: str | None = None
    tag: str | None = None


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """The options of `bundler bundle` as they were given; None, or an empty tuple, for an option that was not.

    `data` holds images to measure accuracy on, and `max_drop` is how many percentage points an INT8 mode may lose on them: of
    top-1, of a detector's mAP, or without labels, of boxes that agree with FP32's. `epochs` and `learning_rate` are for
    quantization-aware training. `input_size` sets the size of the input and, unless `preprocessing` does, the size to which
    images are resized.
    """

    model: str
    target: str
    weights: WeightsRequest
    calibration: CalibrationRequest
    output: Path
    seed: int
    epochs: int
    learning_rate: float | None = None
    modes: tuple[str, ...] = ()
    int8_scope: Int8Scope | None = None
    input_size: Pixels | None = None
    preprocessing: PreprocessingRequest = DEFAULT_PREPROCESSING_REQUEST
    data: Path | None = None
    max_drop: float | None = None
    image: DeviceImageRequest = DeviceImageRequest()


@dataclass(frozen=True, kw_only=True)
class AccuracyRequest:
    """Images to measure accuracy on, and the percentage points that INT8 may lose; None for no limit."""

    data: Path
    max_drop: float | None


@dataclass(frozen=True, kw_only=True)
class PtqRequest:
    """int8-ptq: ranges from calibration images. With accuracy and a limit, the profile's fallback steps are tried."""

    accuracy: AccuracyRequest | None


@dataclass(frozen=True, kw_only=True)
class QatRequest:
    """int8-qat: weights trained for INT8 on the images of `accuracy.data`."""

    accuracy: AccuracyRequest
    training: TrainingOptions


@dataclass(frozen=True, kw_only=True)
class BuildJob:
    """One model for one target, with every choice made; `fp32`, `ptq` and `qat` are the modes that go into the bundle."""

    row: ScopeRow
    variant: ModelSpec
    target: TargetProfile
    fp32: bool
    ptq: PtqRequest | None
    qat: QatRequest | None
    accuracy: AccuracyRequest | None
    int8_scope: Int8Scope
    weights: WeightsRequest
    preprocessing: Preprocessing
    calibration: CalibrationRequest
    image: DeviceImageRequest
    output: Path
    seed: int

    @property
    def modes(self) -> tuple[Mode, ...]:
        chosen: dict[Mode, bool] = {"fp32": self.fp32, "int8-ptq": self.ptq is not None, "int8-qat": self.qat is not None}
        return tuple(mode for mode, wanted in chosen.items() if wanted)

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


def plan_build(request: BuildRequest) -> BuildJob:
    """Make every choice that needs neither the images nor the weights, and no network.

    Reads the target's profile; `find_model` imports the models that other packages register.

    Raises:
        UnknownModelError, UnknownTargetError: with the nearest names.
        ModeUnavailableError: the model does not have one of the modes.
        ImpossibleRequestError: two options contradict each other, or a value is out of range.
    """
    row, variant = find_model(request.model)
    target = find_target(request.target)
    for asked in request.modes:
        if asked not in variant.modes:
            raise ModeUnavailableError(request.model, asked, "there is no such mode", variant.modes)
    modes = request.modes or DEFAULT_MODES
    _require_possible(request, variant)
    accuracy = None if request.data is None else AccuracyRequest(data=request.data, max_drop=request.max_drop)
    if accuracy is None and request.max_drop is not None:
        raise ImpossibleRequestError("--max-drop requires --data", next_step="Give images to measure accuracy on: --data DIR.")
    return BuildJob(
        row=row,
        variant=variant,
        target=target,
        fp32="fp32" in modes,
        ptq=PtqRequest(accuracy=accuracy) if "int8-ptq" in modes else None,
        qat=_plan_training(request, variant, accuracy) if "int8-qat" in modes else None,
        accuracy=accuracy,
        int8_scope=request.int8_scope or variant.int8_scopes[0],
        weights=request.weights,
        preprocessing=choose_preprocessing(variant, request.preprocessing, input_size=request.input_size),
        calibration=request.calibration,
        image=replace(request.image, tag=None if request.image.tag is None else _image_reference(request.image.tag)),
        output=request.output,
        seed=request.seed,
    )


def _require_possible(request: BuildRequest, variant: ModelSpec) -> None:
    weights = request.weights
    if request.int8_scope is not None and request.int8_scope not in variant.int8_scopes:
        raise ImpossibleRequestError(
            f"--int8-scope {request.int8_scope} is supported for detectors only; {variant.name} is a classifier",
            next_step="Remove --int8-scope: the whole network becomes INT8.",
        )
    if weights.cfg is not None and variant.name not in DARKNET:
        raise ImpossibleRequestError(
            f"--cfg is supported for {' and '.join(DARKNET)} only, not for {variant.name}", next_step="Remove --cfg."
        )
    if weights.key is not None and weights.source in ("auto", "pretrained", "random"):
        raise ImpossibleRequestError(
            f"--weights-key requires a file of weights, and --weights is {weights.source}",
            next_step="Give --weights FILE, or remove --weights-key.",
        )
    fewest = 1 if variant.task == "detection" else 2
    if weights.num_classes is not None and weights.num_classes < fewest:
        raise ImpossibleRequestError(
            f"--num-classes must be at least {fewest} (got {weights.num_classes})",
            next_step="Give the number of classes of the weights, or remove --num-classes to take it from the file.",
        )


def _plan_training(request: BuildRequest, variant: ModelSpec, accuracy: AccuracyRequest | None) -> QatRequest:
    if accuracy is None:
        raise ImpossibleRequestError(
            "int8-qat requires images to train on",
            next_step="Give --data DIR, with train/ and val/ in it, or "
            + ("images alone." if variant.task == "detection" else "one folder for each class."),
        )
    usual = DETECTORS if variant.task == "detection" else CLASSIFIERS
    rate = request.learning_rate or usual.learning_rate
    return QatRequest(accuracy=accuracy, training=replace(usual, epochs=request.epochs, learning_rate=rate))


def _image_reference(text: str) -> str:
    """Return `REPOSITORY:TAG`; the tag is `latest` if none is given."""
    found = _REFERENCE.fullmatch(text)
    if found is None or len(found["repository"]) > _LONGEST_REPOSITORY:
        raise ImpossibleRequestError(
            f"--tag must be REPOSITORY or REPOSITORY:TAG, in lower case (got {text!r})",
            next_step="For example: --tag vision/mobilenet_v2:1.2.0.",
        )
    return f"{found['repository']}:{found['tag'] or 'latest'}"
