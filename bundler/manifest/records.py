"""The records that `manifest.json` consists of, as pydantic models: frozen, without unknown keys, written by alias."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from bundler.targets import CpuName, Name
from bundler.visible import visible

__all__ = [
    "MANIFEST_BYTES",
    "MANIFEST_SCHEMA",
    "AccuracyRecord",
    "BoxesRecord",
    "CalibrationRecord",
    "ComparedTensor",
    "CrossTargetRecord",
    "Evidence",
    "ExecutionPair",
    "FallbackRecord",
    "Identifier",
    "ImageRecord",
    "LayerComparisonRecord",
    "LayerRecord",
    "Manifest",
    "ModeRecord",
    "ModelRecord",
    "OnnxRecord",
    "PreprocessingRecord",
    "QuantizationRecord",
    "ReleaseNumber",
    "RoundingRecord",
    "RunnerRecord",
    "SaturationRecord",
    "Sha256",
    "StepDifferences",
    "TargetRecord",
    "TensorName",
    "TensorRecord",
    "TrainingRecord",
    "Verdict",
    "WeightsRecord",
    "WheelRecord",
    "overall_verdict",
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


# Names become parts of paths, image references and commands, so their alphabet is restricted. Text is not restricted; it is
# escaped wherever it is printed or rendered (bundler/console.py, bundler/packaging/rendering.py).
Text = Annotated[str, BeforeValidator(_writable)]
Identifier = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=200)]
TensorName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$", max_length=100)]
ImageReference = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$", max_length=300)]
ReleaseNumber = Annotated[str, Field(pattern=r"^[0-9]+(?:\.[0-9]+){0,3}$", max_length=20)]


class _Record(BaseModel):
    """A frozen record; unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=False, validate_by_alias=True, allow_inf_nan=False)

    def changed(self, **changes: Any) -> Self:
        """Return the record with other values of some fields, validated (`model_copy` does not validate).

        Raises:
            ValidationError: a value does not fit its field.
        """
        fields = type(self).model_fields
        values = {field.alias or name: getattr(self, name) for name, field in fields.items()}
        return type(self).model_validate({**values, **changes})


class _SparseRecord(_Record):
    """A record whose fields are left out if they are None."""

    @model_serializer(mode="wrap")
    def _without_none(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if value is not None}


class TensorRecord(_Record):
    """A graph's input or output; the batch axis is dynamic and written as 0. Detections are [0, boxes, 5 + classes]."""

    name: TensorName
    dtype: Literal["float32"]
    shape: Annotated[tuple[int, ...], Field(description="0 means the dynamic batch axis")]


Pixels = Annotated[int | tuple[int, int], Field(description="side of a square, or [height, width]")]


class PreprocessingRecord(_Record):
    """How an image becomes the input: converted to 8-bit RGB, resized, cropped or padded, and (x / 255 - mean) / std."""

    fit: Annotated[
        Literal["crop", "squash", "letterbox"],
        Field(
            description="crop: resized with unchanged proportions (sides rounded down) to the smallest size that covers "
            "`resize`, and the middle of that; squash: resized to exactly `resize`, and the middle of that; letterbox: resized "
            "with unchanged proportions (sides rounded to the nearest) to the largest size that lies within `crop`, and "
            "centred (rounded down) on grey (114, 114, 114). A middle begins at half of what is left over, rounded half to even"
        ),
    ]
    resize: Annotated[Pixels, Field(description="pixels; of a square, the shorter side if the image is cropped")]
    crop: Annotated[Pixels, Field(description="pixels of the input")]
    interpolation: Annotated[
        Literal["nearest", "box", "bilinear", "bicubic", "lanczos", "opencv-bilinear"],
        Field(
            description="Pillow's `Image.Resampling` of that name, whose filters widen when they shrink an image; or "
            "opencv-bilinear, OpenCV's INTER_LINEAR in 11-bit fixed point, which takes the nearest 2 x 2 pixels at any scale"
        ),
    ]
    channels: Annotated[Literal["rgb", "bgr"], Field(description="order in the input")] = "rgb"
    mean: Annotated[
        tuple[float, float, float], Field(description="subtracted from x / 255 in float32, one for each channel in their order")
    ]
    std: Annotated[tuple[float, float, float], Field(description="divided by in float32, likewise")]


class WeightsRecord(_SparseRecord):
    """The weights that were quantized, and where they come from."""

    source: Annotated[Text, Field(description="`pretrained:NAME`, `random:SEED`, or a file's name")]
    sha256: Annotated[Sha256, Field(description="of the file, or of the state dict if there is no file")]
    trained: bool
    network: Annotated[
        Text | None,
        Field(description="of a detector: what the file says of activations and anchors, or what is assumed of them"),
    ] = None


class ModelRecord(_SparseRecord):
    """The network, its input and output, the preprocessing of its input, and its weights."""

    name: Identifier
    row: Annotated[Text, Field(description="row of the scope table in docs/specification.md")]
    task: Literal["classification", "detection"]
    num_classes: int
    class_names: Annotated[
        tuple[Text, ...] | None, Field(description="of a detector, as its checkpoint holds them; left out if it holds none")
    ] = None
    input: TensorRecord
    output: TensorRecord
    preprocessing: PreprocessingRecord
    suspicions: Annotated[
        tuple[Text, ...],
        Field(description="what a poor accuracy of FP32 is probably due to, other preprocessing first; empty if none is"),
    ] = ()
    weights: WeightsRecord


class TargetRecord(_Record):
    """The target profile that the bundle was built for."""

    name: Name
    platform: Annotated[str, Field(pattern=r"^linux/[a-z0-9]+$", max_length=30)]


class OnnxRecord(_Record):
    """The ONNX file of a mode."""

    path: Annotated[str, Field(pattern=r"^models/[a-z0-9-]+\.onnx$", max_length=60)]
    sha256: Sha256
    bytes: int
    opset: int
    onnxruntime_minimum: Annotated[
        ReleaseNumber | None,
        Field(description="oldest onnxruntime that executes its operators; null if not measured"),
    ] = None


class CalibrationRecord(_Record):
    """The images that calibrated the activations' ranges (PTQ)."""

    source: Literal["pictures", "synthetic"]
    count: int
    batch_size: int
    digest: Annotated[Sha256, Field(description="over the names and bytes of the images, in their order")]
    skipped: Annotated[tuple[Text, ...], Field(description="images that could not be read")]


class TrainingRecord(_Record):
    """Quantization-aware training; scores are the fake-quantized model's on the validation images."""

    pictures: int
    validation_pictures: int
    data_sha256: Annotated[Sha256, Field(description="over the names and bytes of the images that it was trained on")]
    epochs: int
    batch_size: int
    learning_rate: Annotated[float, Field(description="initial; it decreases with a cosine")]
    statistics_epochs: Annotated[int, Field(description="for how many epochs BatchNorm statistics were updated")]
    observers_epochs: Annotated[int, Field(description="for how many epochs the ranges of activations were updated")]
    measure: Annotated[Literal["top1", "boxes"], Field(description="top-1, or the share of boxes that agree with FP32's")]
    score_before: float
    scores: tuple[float, ...]
    best_epoch: Annotated[int, Field(description="whose weights these are; 0 if none was better than before")]
    numerics: Annotated[
        dict[str, str],
        Field(
            description="settings of the build machine on which the last bits of the trained weights, and so the INT8 file, "
            "depend: they choose the order in which float32 values are summed. int8-ptq, computed in float64, depends on none"
        ),
    ] = {}


class FallbackRecord(_Record):
    """A step of the accuracy fallback, which was tried because INT8 lost more accuracy than allowed."""

    step: Text
    detail: Annotated[Text, Field(description="why it was not tried, with how many images, or which layers stay in float")]
    score: Annotated[
        float | None, Field(description="top-1, mAP or agreement of boxes with it, 0 to 1; null if it was not tried")
    ]
    won_points: Annotated[float | None, Field(description="percentage points of the score against the best before")]
    kept: Annotated[bool, Field(description="whether the mode has it; the steps after it build on it")]


class QuantizationRecord(_Record):
    """How a mode was quantized, and what was established about its graph before it was executed on the target."""

    engine: Text
    qconfig: Text
    calibration: Annotated[CalibrationRecord | None, Field(description="null if it was trained")]
    training: Annotated[TrainingRecord | None, Field(description="null if it was calibrated")] = None
    quantize_nodes: int
    dequantize_nodes: int
    float_operators: Annotated[
        dict[Text, int], Field(description="operators that compute in float between Quantize and Dequantize")
    ]
    torch_max_steps: Annotated[
        int | None,
        Field(description="ONNX Runtime against torch's INT8 on the build host, in output steps; null if the output is float"),
    ]
    torch_equal_share: Annotated[float, Field(description="share of outputs equal to torch's INT8 on the build host")]
    refinements: Annotated[
        tuple[Text, ...],
        Field(description="options beyond torch's default qconfig, from the target's profile or the accuracy fallback"),
    ]
    recovery: Annotated[
        tuple[FallbackRecord, ...], Field(description="steps of the accuracy fallback, in the order in which they were tried")
    ] = ()
    optimization_levels: Annotated[
        dict[Text, Sha256], Field(description="graph optimization level: digest of the outputs on the build host")
    ]
    saturation: tuple[SaturationRecord, ...]
    ties: tuple[RoundingRecord, ...]
    layers: Annotated[
        tuple[LayerRecord, ...], Field(description="torch's INT8 on the golden images, layer by layer as they are executed")
    ] = ()


class LayerRecord(_Record):
    """SQNR of a layer against the same layer in float; it includes the noise of all preceding layers."""

    name: Text
    weight_sqnr_db: Annotated[float | None, Field(description="null if it has no weights, or none was changed")]
    output_sqnr_db: Annotated[float | None, Field(description="null if its outputs are equal")]


class StepDifferences(_Record):
    """How many values of one tensor are equal in two executions, differ by one quantization step, and by more."""

    equal: int
    one: int
    more: int


class ExecutionPair(_Record):
    """Two executions of the same INT8 network on the golden images."""

    first: Text
    second: Text
    parted: Annotated[Text | None, Field(description="first layer in which any value differs; null if all are equal")]
    top1_agreement: Annotated[float | None, Field(description="share of the golden images; null for a detector")]


class ComparedTensor(_Record):
    """A quantized tensor of the first golden image."""

    layer: Text
    apart: Annotated[
        tuple[StepDifferences | None, ...], Field(description="one for each pair; null if torch has no such tensor")
    ]


class LayerComparisonRecord(_Record):
    """Layer-wise comparison of torch's INT8 and ONNX Runtime, in the order of execution.

    Of a tensor with more than 16,384 values, 16,384 evenly spaced ones are compared.
    """

    executions: tuple[Text, ...]
    pairs: tuple[ExecutionPair, ...]
    tensors: tuple[ComparedTensor, ...]


class RoundingRecord(_Record):
    """An operator that rounds in float; every possible input was tried with every way of rounding that CPUs use."""

    operator: Text
    op_type: Text
    inputs: int
    ambiguous: Annotated[int, Field(description="inputs whose result depended on the CPU, before the scale was perturbed")]
    nudge: Annotated[float, Field(description="factor of its output scale that makes the result independent of the CPU")]


class SaturationRecord(_Record):
    """A convolution or matrix product: extremes of the sums of two adjacent weights; from -128 to 128 none saturates."""

    operator: Text
    paired: Annotated[bool, Field(description="whether CPUs without VNNI add its products in pairs")]
    smallest_sum: int
    largest_sum: int
    saturating_channels: int


class AccuracyRecord(_Record):
    """Accuracy of a classifier on labelled images, measured with ONNX Runtime on the build host.

    Shares from 0 to 1 with 95 % intervals: Wilson's for top-1, Agresti and Min's (2005) for the difference of pairs.
    """

    pictures: int
    data_sha256: Annotated[Sha256, Field(description="over the names and bytes of the images, in their order")]
    top1: float
    top1_interval: tuple[float, float]
    top5: Annotated[float | None, Field(description="null if there are five classes or fewer")]
    drop: Annotated[float | None, Field(description="of top-1 against FP32, below 0 if it is better; null for FP32 itself")]
    drop_interval: tuple[float, float] | None

    @property
    def score(self) -> float:
        return self.top1

    @property
    def lost_points(self) -> float | None:
        """Percentage points of top-1 lost to FP32, rounded, so that 0.07 is exactly 7. None for FP32 itself."""
        return None if self.drop is None else round(100 * self.drop, 6)


class BoxesRecord(_Record):
    """Detections on many images, measured with ONNX Runtime on the build host; shares from 0 to 1.

    The agreement is the share of both models' detections (each box for its best class, confidence above 0.25, after
    non-maximum suppression at 0.45) with a partner of the same class and an IoU of at least 0.5 in the other; its 95 % interval
    is bootstrapped over the images. Mean average precision is COCO's, from detections of every class above 0.001 after
    suppression at 0.6.
    """

    pictures: int
    data_sha256: Annotated[Sha256, Field(description="over the names and bytes of images and labels, in their order")]
    boxes: Annotated[int, Field(description="detections of this mode, a box for its best class")]
    agreement: Annotated[float | None, Field(description="with FP32; null for FP32 itself")]
    agreement_interval: tuple[float, float] | None
    labelled_boxes: Annotated[int | None, Field(description="null if no labels were given, as what follows")]
    map50_95: Annotated[float | None, Field(description="mean over IoU from 0.5 to 0.95")]
    map50: Annotated[float | None, Field(description="at an IoU of 0.5")]
    drop: Annotated[float | None, Field(description="of map50_95 against FP32, below 0 if it is better")]

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


class RunnerRecord(_Record):
    """What executed the device program, as detected by itself: the CPU, or an emulator."""

    kind: Literal["native", "emulator"]
    name: Text
    version: Text
    sha256: Sha256 | None = None


class Evidence(_Record):
    """One execution of a mode on one CPU, or the reason why there was none."""

    cpu: CpuName
    verdict: Verdict
    reason: Text = ""
    machine: Annotated[Text | None, Field(description="`uname -m` where the device program was executed")] = None
    cpu_features: Annotated[
        tuple[Text, ...], Field(description="as numpy names them, detected where the device program was executed")
    ] = ()
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
        float | None, Field(description="against the FP32 outputs of the build host; null if equal bit for bit")
    ] = None
    top1_agreement: Annotated[float | None, Field(description="share of the golden images whose top-1 is FP32's")] = None
    boxes_agreement: Annotated[
        float | None, Field(description="share of detections that match FP32's: same class, IoU of at least 0.5")
    ] = None
    max_steps: Annotated[int | None, Field(description="against the build host's outputs of this mode, in output steps")] = None


def overall_verdict(evidence: Iterable[Evidence]) -> Verdict:
    """Return `failed` if anything failed, `passed` if everything was executed and passed, otherwise `not_run`."""
    verdicts = {item.verdict for item in evidence}
    if "failed" in verdicts:
        return "failed"
    return "passed" if verdicts == {"passed"} else "not_run"


class CrossTargetRecord(_Record):
    """Cross-target verification: the same file, executed on the CPUs of another target."""

    target: Name
    evidence: tuple[Evidence, ...]


class ModeRecord(_Record):
    """One mode of the bundle, with the evidence that decides whether it is supported."""

    name: Literal["fp32", "int8-ptq", "int8-qat"]
    supported: bool
    reason: Text
    scope: Annotated[
        Literal["whole", "backbone"] | None,
        Field(
            description="how much of the network is INT8: all but a detector's decoding, or its backbone; null for a float mode"
        ),
    ]
    onnx: OnnxRecord
    exact: Annotated[bool, Field(description="whether the outputs were bit-identical everywhere this mode was executed")]
    exact_reason: Text
    accuracy: Annotated[
        AccuracyRecord | BoxesRecord | None, Field(description="on the images of --data; null if none were given")
    ] = None
    quantization: QuantizationRecord | None
    evidence: tuple[Evidence, ...]
    fleet: Annotated[tuple[CrossTargetRecord, ...], Field(description="on the CPUs of the targets in `also_verify_on`")] = ()
    ledger: Annotated[
        LayerComparisonRecord | None,
        Field(description="layer-wise comparison of `bundler verify --explain`; null for a float mode"),
    ] = None


class WheelRecord(_Record):
    """A wheel that was installed into the device image."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl$", max_length=300)]
    sha256: Sha256


class ImageRecord(_SparseRecord):
    """The device image in which the evidence was collected."""

    reference: ImageReference
    digest: Annotated[ImageDigest, Field(description="of the image's configuration")]
    size: Annotated[int, Field(description="bytes of the unpacked layers")]
    base: Annotated[
        ImageReference, Field(description="`debian:SUITE` made from packages, or the reference given with --base-image")
    ]
    base_source: Annotated[
        Literal["packages", "image"] | None,
        Field(
            description="whether the base was made from Debian's packages, or is the image given with --base-image; "
            "not recorded by versions before 0.2"
        ),
    ] = None
    wheels: tuple[WheelRecord, ...]


class Manifest(_Record):
    """What a bundle is, and the evidence of its execution."""

    schema_: Literal["edge-bundler/manifest/2"] = Field(alias="schema")
    bundle: Annotated[Identifier, Field(description="one component of a path: MODEL-TARGET")]
    model: ModelRecord
    target: TargetRecord
    modes: tuple[ModeRecord, ...]
    image: ImageRecord | None
    versions: Annotated[dict[Text, Text], Field(description="of every tool that took part")]

    @property
    def verdict(self) -> Verdict:
        """Of all evidence of all modes, as `overall_verdict`."""
        return overall_verdict(evidence for mode in self.modes for evidence in mode.evidence)
