"""Manifest ⇄ JSON: what was built, and the evidence for each mode that it calls supported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from bundler.errors import BundleDamagedError
from bundler.plain_files import read_regular
from bundler.strict_json import parse_json
from bundler.targets import CpuName, Name
from bundler.visible import visible

__all__ = [
    "MANIFEST_BYTES",
    "MANIFEST_SCHEMA",
    "AccuracyRecord",
    "BoxesRecord",
    "CalibrationRecord",
    "Evidence",
    "FleetRecord",
    "ImageRecord",
    "LayerRecord",
    "LedgerPair",
    "LedgerRecord",
    "LedgerTensor",
    "Manifest",
    "ModeRecord",
    "ModelRecord",
    "OnnxRecord",
    "PreprocessingRecord",
    "QuantizationRecord",
    "RecoveryRecord",
    "RunnerRecord",
    "SaturationRecord",
    "StepsApart",
    "TargetRecord",
    "TensorRecord",
    "TieRecord",
    "TrainingRecord",
    "Verdict",
    "WeightsRecord",
    "WheelRecord",
    "exactness_obstacles",
    "json_schema",
    "judge_exactness",
    "judge_mode",
    "parse_manifest",
    "read_manifest",
    "write_manifest",
]

MANIFEST_SCHEMA: Final = "edge-bundler/manifest/2"

Verdict = Literal["passed", "failed", "not_run"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ImageDigest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]

MANIFEST_BYTES: Final = 8 * 2**20  # at most; ours have up to a tenth
_TEXT: Final = 20_000  # characters


def _writable(value: Any) -> Any:
    """Write out bytes of a file name that are not UTF-8, which JSON cannot hold, and cut messages of other programs."""
    if not isinstance(value, str):
        return value
    text = "".join(visible(character) if "\ud800" <= character <= "\udfff" else character for character in value)
    return text if len(text) <= _TEXT else f"{text[: _TEXT - 1]}…"


# Names become parts of paths, image references and commands: they have an alphabet. Text does not, and is made visible, or
# escaped, wherever it is printed or rendered (bundler/console.py, bundler/packaging/rendering.py).
Text = Annotated[str, BeforeValidator(_writable)]
Identifier = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=200)]
TensorName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$", max_length=100)]
ImageReference = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$", max_length=300)]
ReleaseNumber = Annotated[str, Field(pattern=r"^[0-9]+(?:\.[0-9]+){0,3}$", max_length=20)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=False, validate_by_alias=True, allow_inf_nan=False)


class _SparseRecord(_Record):
    """A record whose fields are left out where they are None."""

    @model_serializer(mode="wrap")
    def _without_none(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if value is not None}


class TensorRecord(_Record):
    """A graph's input or output; the batch axis is dynamic and written as 0. Detections are [0, boxes, 5 + classes]."""

    name: TensorName
    dtype: Literal["float32"]
    shape: Annotated[tuple[int, ...], Field(description="0 stands for the dynamic batch axis")]


Pixels = Annotated[int | tuple[int, int], Field(description="side of a square, or [height, width]")]


class PreprocessingRecord(_Record):
    """How a picture becomes the input: converted to RGB of 8 bits, resized, cut or padded, and (x / 255 - mean) / std."""

    fit: Annotated[
        Literal["crop", "squash", "letterbox"],
        Field(
            description="crop: resized with unchanged proportions (sides rounded down) to the smallest size that covers "
            "`resize`, and the middle of that; squash: resized to exactly `resize`, and the middle of that; letterbox: resized "
            "with unchanged proportions (sides rounded to the nearest) to the largest size that lies within `crop`, and "
            "centred (rounded down) on grey (114, 114, 114). A middle begins at half of what is left over, rounded half to even"
        ),
    ]
    resize: Annotated[Pixels, Field(description="pixels; of a square, the shorter side where the picture is cropped")]
    crop: Annotated[Pixels, Field(description="pixels of the input")]
    interpolation: Annotated[
        Literal["nearest", "box", "bilinear", "bicubic", "lanczos", "opencv-bilinear"],
        Field(
            description="Pillow's `Image.Resampling` of that name, whose filters widen when they shrink a picture; or "
            "opencv-bilinear, OpenCV's INTER_LINEAR in 11-bit fixed point, which takes the nearest 2 x 2 pixels at any scale"
        ),
    ]
    channels: Annotated[Literal["rgb", "bgr"], Field(description="order in the input")] = "rgb"
    mean: Annotated[
        tuple[float, float, float], Field(description="subtracted from x / 255 in float32, one for each channel in their order")
    ]
    std: Annotated[tuple[float, float, float], Field(description="divided by in float32, likewise")]

    def __str__(self) -> str:
        size, cut = _pixels(self.resize), _pixels(self.crop)
        if self.fit == "letterbox":
            fitted = f"letterboxed into {cut}"
        elif self.fit == "squash":
            fitted = f"squashed to {size}" + (f", centre {cut}" if self.crop != self.resize else "")
        else:
            fitted = f"shorter side to {self.resize}" if isinstance(self.resize, int) else f"resized to cover {size}"
            fitted += f", centre {cut}"
        mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (self.mean, self.std))
        return f"{fitted} ({self.interpolation}), {self.channels.upper()}, (x/255 - [{mean}]) / [{std}]"


def _pixels(pixels: int | tuple[int, int]) -> str:
    height, width = (pixels, pixels) if isinstance(pixels, int) else pixels
    return f"{height}x{width}"


class WeightsRecord(_SparseRecord):
    source: Annotated[Text, Field(description="`pretrained:NAME`, `random:SEED`, or a file's name")]
    sha256: Annotated[Sha256, Field(description="of the file, or of the state dict where there is no file")]
    trained: bool
    network: Annotated[
        Text | None,
        Field(description="of a detector: what the file says of activations and anchors, or what is assumed of them"),
    ] = None


class ModelRecord(_SparseRecord):
    name: Identifier
    row: Annotated[Text, Field(description="row of the specification's scope table")]
    task: Literal["classification", "detection"]
    num_classes: int
    class_names: Annotated[
        tuple[Text, ...] | None, Field(description="of a detector, as its checkpoint holds them; left out where it holds none")
    ] = None
    input: TensorRecord
    output: TensorRecord
    preprocessing: PreprocessingRecord
    suspicions: Annotated[
        tuple[Text, ...],
        Field(description="what a poor accuracy of FP32 is probably due to, other preprocessing first; empty where none is"),
    ] = ()
    weights: WeightsRecord


class TargetRecord(_Record):
    name: Name
    platform: Annotated[str, Field(pattern=r"^linux/[a-z0-9]+$", max_length=30)]


class OnnxRecord(_Record):
    path: Annotated[str, Field(pattern=r"^models/[a-z0-9-]+\.onnx$", max_length=60)]
    sha256: Sha256
    bytes: int
    opset: int
    onnxruntime_minimum: Annotated[
        ReleaseNumber | None,
        Field(description="oldest onnxruntime that executes its operators; null if not measured"),
    ] = None


class CalibrationRecord(_Record):
    source: Literal["pictures", "synthetic"]
    count: int
    batch_size: int
    digest: Annotated[Sha256, Field(description="over the names and bytes of the pictures, in their order")]
    skipped: Annotated[tuple[Text, ...], Field(description="pictures that could not be read")]


class TrainingRecord(_Record):
    """Quantization-aware training; scores are the fake-quantized model's on the validation pictures."""

    pictures: int
    validation_pictures: int
    data_sha256: Annotated[Sha256, Field(description="over the names and bytes of the pictures it learned from")]
    epochs: int
    batch_size: int
    learning_rate: Annotated[float, Field(description="at the beginning; it falls like a cosine")]
    statistics_epochs: Annotated[int, Field(description="for how many epochs BatchNorm statistics were updated")]
    observers_epochs: Annotated[int, Field(description="for how many epochs the ranges of activations were")]
    measure: Annotated[Literal["top1", "boxes"], Field(description="top-1, or the share of boxes that agree with FP32's")]
    score_before: float
    scores: tuple[float, ...]
    best_epoch: Annotated[int, Field(description="whose weights these are; 0 where none was better than before")]
    numerics: Annotated[
        dict[str, str],
        Field(
            description="settings of the build machine on which the last bits of the trained weights, and so the INT8 file, "
            "depend: they choose the order in which float32 values are summed. int8-ptq, computed in float64, depends on none"
        ),
    ] = {}


class RecoveryRecord(_Record):
    """Something that was tried because INT8 lost more accuracy than was allowed."""

    step: Text
    detail: Annotated[Text, Field(description="why it was not tried, with how many pictures, or which layers stay in float")]
    score: Annotated[
        float | None, Field(description="top-1, mAP or agreement of boxes with it, 0 to 1; null where it was not tried")
    ]
    won_points: Annotated[float | None, Field(description="percentage points of the score against the best before")]
    kept: Annotated[bool, Field(description="whether the mode has it; the steps after it stand on it")]


class QuantizationRecord(_Record):
    engine: Text
    qconfig: Text
    calibration: Annotated[CalibrationRecord | None, Field(description="null where it was trained")]
    training: Annotated[TrainingRecord | None, Field(description="null where it was calibrated")] = None
    quantize_nodes: int
    dequantize_nodes: int
    float_operators: Annotated[
        dict[Text, int], Field(description="operators that compute in float between Quantize and Dequantize")
    ]
    torch_max_steps: Annotated[
        int | None,
        Field(
            description="ONNX Runtime against torch's INT8 on the build host, in output steps; null where the output is float"
        ),
    ]
    torch_equal_share: Annotated[float, Field(description="share of outputs equal to torch's INT8 on the build host")]
    refinements: Annotated[
        tuple[Text, ...],
        Field(description="what was changed in torch's default qconfig, by the target's profile or to recover"),
    ]
    recovery: Annotated[
        tuple[RecoveryRecord, ...], Field(description="what was tried where more accuracy was lost than allowed, in that order")
    ] = ()
    optimization_levels: Annotated[
        dict[Text, Sha256], Field(description="graph optimization level: digest of the outputs on the build host")
    ]
    saturation: tuple[SaturationRecord, ...]
    ties: tuple[TieRecord, ...]
    layers: Annotated[
        tuple[LayerRecord, ...], Field(description="torch's INT8 on the golden pictures, layer by layer as they are executed")
    ] = ()


class LayerRecord(_Record):
    """How far a layer is from the float network's, with the noise of all layers before it."""

    name: Text
    weight_sqnr_db: Annotated[float | None, Field(description="null where it has no weights, or none was changed")]
    output_sqnr_db: Annotated[float | None, Field(description="null where its outputs are equal")]


class StepsApart(_Record):
    """Of the values of one tensor, how many are equal in two executions, one quantization step apart, and more."""

    equal: int
    one: int
    more: int


class LedgerPair(_Record):
    """Two executions of the same INT8 network on the golden pictures."""

    first: Text
    second: Text
    parted: Annotated[Text | None, Field(description="first layer in which any value differs; null where all are equal")]
    top1_agreement: Annotated[float | None, Field(description="share of the golden pictures; null for a detector")]


class LedgerTensor(_Record):
    """A quantized tensor of the first golden picture."""

    layer: Text
    apart: Annotated[tuple[StepsApart | None, ...], Field(description="one for each pair; null where torch has no such tensor")]


class LedgerRecord(_Record):
    """Torch's INT8 and ONNX Runtime side by side, tensor by tensor as they are computed.

    Of a tensor with more than 16,384 values, as many as that are compared, evenly spaced.
    """

    executions: tuple[Text, ...]
    pairs: tuple[LedgerPair, ...]
    tensors: tuple[LedgerTensor, ...]


class TieRecord(_Record):
    """An operator that rounds in float: all its inputs were tried in every way in which processors round."""

    operator: Text
    op_type: Text
    inputs: int
    ambiguous: Annotated[int, Field(description="inputs whose answer depended on the processor, before the nudge")]
    nudge: Annotated[float, Field(description="by which its output scale was multiplied, so that none does")]


class SaturationRecord(_Record):
    """A convolution or matrix product: the extremes of two neighbouring weights' sums; from -128 to 128 none saturates."""

    operator: Text
    paired: Annotated[bool, Field(description="whether processors without VNNI add its products in pairs at all")]
    smallest_sum: int
    largest_sum: int
    saturating_channels: int


class AccuracyRecord(_Record):
    """How often a classifier is right on labelled pictures, measured in ONNX Runtime on the build host.

    Shares from 0 to 1 with 95 % intervals: Wilson's for top-1, Agresti and Min's (2005) for the difference of pairs.
    """

    pictures: int
    data_sha256: Annotated[Sha256, Field(description="over the names and bytes of the pictures, in their order")]
    top1: float
    top1_interval: tuple[float, float]
    top5: Annotated[float | None, Field(description="null where there are five classes or fewer")]
    drop: Annotated[float | None, Field(description="of top-1 against FP32, below 0 where it is better; null for FP32 itself")]
    drop_interval: tuple[float, float] | None

    @property
    def score(self) -> float:
        return self.top1

    @property
    def lost_points(self) -> float | None:
        """Percentage points of top-1 lost to FP32, as they are written: 0.07 is 7 and not a bit more. None for FP32 itself."""
        return None if self.drop is None else round(100 * self.drop, 6)

    def __str__(self) -> str:
        low, high = self.top1_interval
        text = f"top-1 {self.top1:.2%} ({low:.1%} to {high:.1%})"
        if self.top5 is not None:
            text += f", top-5 {self.top5:.2%}"
        if self.drop is not None and self.drop_interval is not None:
            low, high = self.drop_interval
            text += f", {100 * self.drop:+.2f} points lost to FP32 ({100 * low:+.2f} to {100 * high:+.2f})"
        return text


class BoxesRecord(_Record):
    """What a detector sees in many pictures, measured in ONNX Runtime on the build host; shares from 0 to 1.

    The agreement is the share of both models' detections (each box for its best class, confidence above 0.25, after
    non-maximum suppression at 0.45) with a partner of the same class and an IoU of at least 0.5 in the other; its 95 % interval
    comes from drawing the pictures anew. Mean average precision is COCO's, from detections of every class above 0.001 after
    suppression at 0.6.
    """

    pictures: int
    data_sha256: Annotated[Sha256, Field(description="over the names and bytes of pictures and labels, in their order")]
    boxes: Annotated[int, Field(description="detections of this mode, a box for its best class")]
    agreement: Annotated[float | None, Field(description="with FP32; null for FP32 itself")]
    agreement_interval: tuple[float, float] | None
    labelled_boxes: Annotated[int | None, Field(description="null where no labels were given, as what follows")]
    map50_95: Annotated[float | None, Field(description="mean over IoU from 0.5 to 0.95")]
    map50: Annotated[float | None, Field(description="at an IoU of 0.5")]
    drop: Annotated[float | None, Field(description="of map50_95 against FP32, below 0 where it is better")]

    @property
    def score(self) -> float:
        score = self.agreement if self.map50_95 is None else self.map50_95
        return 1.0 if score is None else score

    @property
    def lost_points(self) -> float | None:
        """Percentage points of mAP lost to FP32; without labels, of boxes that do not agree. None for FP32 itself."""
        lost = self.drop
        if lost is None and self.map50_95 is None and self.agreement is not None:
            lost = 1 - self.agreement
        return None if lost is None else round(100 * lost, 6)

    def __str__(self) -> str:
        facts = [f"{self.boxes} boxes"]
        if self.agreement is not None and self.agreement_interval is not None:
            low, high = self.agreement_interval
            facts.append(f"{self.agreement:.1%} agree with FP32's ({low:.1%} to {high:.1%})")
        if self.map50_95 is not None:
            facts.append(f"mAP50-95 {self.map50_95:.2%}, mAP50 {self.map50:.2%}")
        if self.drop is not None:
            facts.append(f"{100 * self.drop:+.2f} points of mAP50-95 lost to FP32")
        return ", ".join(facts)


class RunnerRecord(_Record):
    """What executed the runner, as seen from inside: the processor itself, or an emulator."""

    kind: Literal["native", "emulator"]
    name: Text
    version: Text
    sha256: Sha256 | None = None


class Evidence(_Record):
    """One execution of a mode on one CPU, or the reason why there was none."""

    cpu: CpuName
    verdict: Verdict
    reason: Text = ""
    machine: Annotated[Text | None, Field(description="`uname -m` in there")] = None
    cpu_features: Annotated[tuple[Text, ...], Field(description="as numpy names them, detected in there")] = ()
    place: Annotated[
        Literal["container", "host"] | None, Field(description="in the device image, or as a process of the host")
    ] = None
    runner: RunnerRecord | None = None
    python: Text | None = None
    numpy: Text | None = None
    onnxruntime: Text | None = None
    graph_optimization_level: Text | None = None
    samples: int | None = None
    image_digest: Annotated[
        ImageDigest | None, Field(description="of the configuration of the device image that was executed; null on the host")
    ] = None
    bundle_sha256: Annotated[
        Sha256 | None, Field(description="of the runner.json that was executed, which holds the checksum of every other file")
    ] = None
    model_sha256: Annotated[Sha256 | None, Field(description="of the model, taken from the bytes that were executed")] = None
    outputs_sha256: Sha256 | None = None
    sqnr_db: Annotated[
        float | None, Field(description="against the FP32 outputs of the build host; null where equal bit for bit")
    ] = None
    top1_agreement: Annotated[float | None, Field(description="share of the golden pictures whose top-1 is FP32's")] = None
    boxes_agreement: Annotated[
        float | None, Field(description="share of detections that match FP32's: same class, IoU of at least 0.5")
    ] = None
    max_steps: Annotated[int | None, Field(description="against the build host's outputs of this mode, in output steps")] = None


class FleetRecord(_Record):
    """The same file, executed on the CPUs of another target."""

    target: Name
    evidence: tuple[Evidence, ...]


class ModeRecord(_Record):
    name: Literal["fp32", "int8-ptq", "int8-qat"]
    supported: bool
    reason: Text
    scope: Annotated[
        Literal["whole", "backbone"],
        Field(description="how much of the network is INT8: all but a detector's decoding, or less"),
    ]
    onnx: OnnxRecord
    exact: Annotated[bool, Field(description="whether the outputs were the same bits everywhere this mode was executed")]
    exact_reason: Text
    accuracy: Annotated[
        AccuracyRecord | BoxesRecord | None, Field(description="on the user's pictures; null where none were given")
    ] = None
    quantization: QuantizationRecord | None
    evidence: tuple[Evidence, ...]
    fleet: tuple[FleetRecord, ...] = ()
    ledger: Annotated[LedgerRecord | None, Field(description="null for a float mode")] = None


class WheelRecord(_Record):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl$", max_length=300)]
    sha256: Sha256


class ImageRecord(_Record):
    reference: ImageReference
    digest: Annotated[ImageDigest, Field(description="of the image's configuration")]
    size: Annotated[int, Field(description="bytes of the unpacked layers")]
    base: Annotated[
        ImageReference, Field(description="`debian:SUITE` made from packages, or the reference given with --base-image")
    ]
    wheels: tuple[WheelRecord, ...]


class Manifest(_Record):
    """A bundle's statement of what it is and where it was executed."""

    schema_: Literal["edge-bundler/manifest/2"] = Field(alias="schema")
    bundle: Annotated[Identifier, Field(description="one component of a path: MODEL-TARGET")]
    model: ModelRecord
    target: TargetRecord
    modes: tuple[ModeRecord, ...]
    image: ImageRecord | None
    versions: Annotated[dict[Text, Text], Field(description="of every tool that took part")]

    @property
    def verdict(self) -> Verdict:
        """`failed` where anything failed, `passed` where every CPU of every mode passed, else `not_run`."""
        verdicts = {evidence.verdict for mode in self.modes for evidence in mode.evidence}
        if "failed" in verdicts:
            return "failed"
        return "passed" if verdicts == {"passed"} else "not_run"


def judge_mode(evidence: Sequence[Evidence]) -> tuple[bool, str]:
    """Return whether a mode is supported, and why: it passed somewhere and failed nowhere.

    The reason names every CPU that passed and every one that did not run, so that nothing is claimed for those.
    """

    def cpus(verdict: Verdict) -> list[Evidence]:
        return [item for item in evidence if item.verdict == verdict]

    def listed(items: Sequence[Evidence]) -> str:
        by_reason: dict[str, list[str]] = {}
        for item in items:
            by_reason.setdefault(item.reason, []).append(item.cpu)
        return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())

    passed, failed, not_run = cpus("passed"), cpus("failed"), cpus("not_run")
    if failed:
        return False, f"failed on {listed(failed)}"
    proved = f"passed on {', '.join(item.cpu for item in passed)}"
    if passed and not_run:
        return True, f"{proved}; not run on {listed(not_run)}"
    return (True, proved) if passed else (False, f"not run on {listed(not_run)}")


def judge_exactness(
    quantization: QuantizationRecord | None, evidence: Sequence[Evidence], fleet: Sequence[FleetRecord]
) -> tuple[bool, str]:
    """Return whether a mode gives the same bits everywhere, and why.

    It does where its outputs had one digest wherever it was executed, on two CPUs at least, and nothing in its graph could
    differ on another: no arithmetic in float, no product that saturates. The reason names what stands against it.
    """
    if quantization is None:
        return False, "it computes in float"
    against = exactness_obstacles(quantization)
    everywhere = [*evidence, *(item for record in fleet for item in record.evidence)]
    executed = [item for item in everywhere if item.outputs_sha256 is not None]
    digests: dict[str, list[str]] = {}
    for item in executed:
        digests.setdefault(str(item.outputs_sha256), []).append(item.cpu)
    if len(digests) > 1:
        against.append(f"the bits differ: {' / '.join(', '.join(cpus) for cpus in digests.values())}")
    if against:
        return False, "; ".join(against)
    if len(executed) < 2:
        return False, f"it was executed on {executed[0].cpu} alone" if executed else "it was not executed"
    left = [item.cpu for item in everywhere if item.outputs_sha256 is None]
    return True, f"on {', '.join(item.cpu for item in executed)}" + (f"; not run on {', '.join(left)}" if left else "")


def exactness_obstacles(quantization: QuantizationRecord) -> list[str]:
    """Return what in an INT8 graph may give other bits on another CPU; nothing where all of it is proved."""
    obstacles = []
    if quantization.float_operators:
        operators = ", ".join(f"{name} x{count}" for name, count in quantization.float_operators.items())
        obstacles.append(f"computed in float: {operators}")
    saturating = [record.operator for record in quantization.saturation if record.saturating_channels]
    if saturating:
        more = f" and {len(saturating) - 3} more" if len(saturating) > 3 else ""
        obstacles.append(f"products saturate on processors without VNNI: {', '.join(saturating[:3])}{more}")
    return obstacles


def json_schema() -> str:
    """Return the JSON Schema (draft 2020-12) of the manifest, as it is published in the repository."""
    schema = Manifest.model_json_schema(by_alias=True)
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": MANIFEST_SCHEMA, **schema}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def write_manifest(manifest: Manifest, path: Path) -> None:
    path.write_text(manifest.model_dump_json(by_alias=True, indent=2) + "\n", encoding="utf-8")


def read_manifest(bundle: Path) -> Manifest:
    """Read `manifest.json` of a bundle, without looking at any other file of it (bundler/packaging/reading.py does).

    Raises:
        BundleDamagedError: it is missing, is not a regular file of at most 8 MiB, or as `parse_manifest`.
    """
    path = bundle / "manifest.json"
    try:
        content = read_regular(path, limit=MANIFEST_BYTES)
    except OSError as error:
        raise _not_a_manifest(path, error.strerror or str(error)) from error
    return parse_manifest(content, path)


def parse_manifest(content: bytes, path: Path) -> Manifest:
    """Return the manifest in the bytes that were read from `path`.

    Raises:
        BundleDamagedError: they are not JSON with one meaning (bundler/strict_json.py), or do not follow the schema.
    """
    try:
        document = parse_json(content)
    except ValueError as error:
        raise _not_a_manifest(path, str(error)) from error
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _not_a_manifest(path, f"{where}: {first['msg']}") from error


def _not_a_manifest(path: Path, reason: str) -> BundleDamagedError:
    return BundleDamagedError(
        f"{path} is not a manifest: {reason}", next_step="Build the bundle again: `bundler bundle MODEL --target TARGET`."
    )
