"""The Manifest of a build, from the results of each step."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from importlib.metadata import version

from bundler.data.calibration_images import CalibrationImages
from bundler.data.preprocessing import Preprocessing
from bundler.engines.container_engine import Engine
from bundler.engines.engine_availability import NoEngine
from bundler.graphs.exported_graph import INPUT, OUTPUTS
from bundler.manifest import (
    MANIFEST_SCHEMA,
    CalibrationRecord,
    ImageRecord,
    LayerRecord,
    Manifest,
    ModelRecord,
    ModeRecord,
    OnnxRecord,
    PreprocessingRecord,
    QuantizationRecord,
    RoundingRecord,
    SaturationRecord,
    TargetRecord,
    TensorRecord,
    TrainingRecord,
    WeightsRecord,
    judge_exactness,
    judge_mode,
)
from bundler.models.specs import Mode
from bundler.packaging.staging import model_path
from bundler.pipeline.inputs import Inputs
from bundler.pipeline.modes import BuiltMode, BuiltModes
from bundler.plan import BuildJob
from bundler.quantization.quantized_model import CompletedTraining
from bundler.verification.session import VerificationResult

__all__ = ["assemble_manifest", "quantization_record"]

_PACKAGES = ("edge-bundler", "torch", "torchvision", "onnx", "onnxruntime", "numpy", "pillow", "docker")


def assemble_manifest(
    job: BuildJob,
    inputs: Inputs,
    built: BuiltModes,
    records: Mapping[Mode, QuantizationRecord | None],
    result: VerificationResult,
    image: ImageRecord | None,
) -> Manifest:
    """Return the manifest of a verified build; whether a mode is supported is judged from its evidence alone.

    Args:
        job: that was built.
        inputs: weights and images that it was built from.
        built: graphs of every mode.
        records: of each mode, as `quantization_record` gives them.
        result: evidence of each mode.
        image: the device image in which the evidence was collected; None without an engine.
    """
    return Manifest(
        schema=MANIFEST_SCHEMA,
        bundle=job.identifier,
        model=_model(job, inputs, built),
        target=TargetRecord(name=job.target.name, platform=job.target.platform),
        modes=tuple(_mode(job, mode, built.modes[mode], records[mode], result) for mode in sorted(built.modes)),
        image=image,
        versions=_versions(result.engine),
    )


def _model(job: BuildJob, inputs: Inputs, built: BuiltModes) -> ModelRecord:
    weights, task = inputs.weights, job.variant.task
    return ModelRecord(
        name=job.variant.name,
        row=job.row.name,
        task=task,
        num_classes=weights.num_classes,
        class_names=weights.class_names,
        input=TensorRecord(name=INPUT, dtype="float32", shape=(0, 3, *job.preprocessing.input_size)),
        output=TensorRecord(name=OUTPUTS[task], dtype="float32", shape=(0, *built.reference.shape[1:])),
        preprocessing=_preprocessing(job.preprocessing),
        suspicions=built.suspicions,
        weights=WeightsRecord(source=weights.source, sha256=weights.sha256, trained=weights.trained, network=weights.network),
    )


def _preprocessing(preprocessing: Preprocessing) -> PreprocessingRecord:
    return PreprocessingRecord(
        resize=preprocessing.resize,
        crop=preprocessing.crop,
        interpolation=preprocessing.interpolation,
        fit=preprocessing.fit,
        channels=preprocessing.channels,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )


def _mode(
    job: BuildJob, mode: Mode, built: BuiltMode, quantization: QuantizationRecord | None, result: VerificationResult
) -> ModeRecord:
    evidence, others = result.evidence[mode], result.other_targets.get(mode, ())
    supported, reason = judge_mode(evidence)
    exact, exact_reason = judge_exactness(quantization, evidence, others)
    graph = built.graph
    return ModeRecord(
        name=mode,
        supported=supported,
        reason=reason,
        scope=job.int8_scope if graph.quantized else None,
        onnx=OnnxRecord(
            path=model_path(mode),
            sha256=graph.sha256,
            bytes=graph.bytes,
            opset=graph.opset,
            onnxruntime_minimum=graph.runtime.onnxruntime,
        ),
        exact=exact,
        exact_reason=exact_reason,
        accuracy=built.accuracy,
        quantization=quantization,
        evidence=evidence,
        fleet=others,
        ledger=result.layer_comparisons.get(mode),
    )


def quantization_record(job: BuildJob, built: BuiltMode) -> QuantizationRecord | None:
    """Return how a mode was quantized, and what was established about its graph; None for a float mode."""
    graph, agreement, quantized = built.graph, built.agreement, built.quantized
    if quantized is None:
        return None
    training = quantized.model.training
    return QuantizationRecord(
        engine=job.target.quantization.engine,
        qconfig=job.target.quantization.qconfig,
        calibration=_calibration(job, quantized.calibration) if training is None else None,
        training=None if training is None else _training(job, training),
        quantize_nodes=graph.quantize_nodes,
        dequantize_nodes=graph.dequantize_nodes,
        float_operators=graph.float_operators,
        torch_max_steps=agreement.max_steps,
        torch_equal_share=agreement.equal_share,
        refinements=quantized.model.profile.options,
        recovery=quantized.steps,
        optimization_levels={str(level): digest for level, digest in quantized.levels.items()},
        saturation=tuple(
            SaturationRecord(
                operator=proof.operator,
                paired=proof.paired,
                smallest_sum=proof.smallest_sum,
                largest_sum=proof.largest_sum,
                saturating_channels=proof.saturating_channels,
            )
            for proof in graph.saturation
        ),
        ties=tuple(
            RoundingRecord(
                operator=proof.operator,
                op_type=proof.op_type,
                inputs=proof.inputs,
                ambiguous=proof.ambiguous_before,
                nudge=proof.factor,
            )
            for proof in graph.perturbations
        ),
        layers=tuple(
            LayerRecord(
                name=layer.name,
                weight_sqnr_db=_finite(layer.weight_sqnr_db),
                output_sqnr_db=_finite(layer.output_sqnr_db),
            )
            for layer in quantized.layers
        ),
    )


def _finite(sqnr_db: float | None) -> float | None:
    """Return None for infinity, which JSON cannot hold."""
    return None if sqnr_db is None or math.isinf(sqnr_db) else sqnr_db


def _calibration(job: BuildJob, calibration: CalibrationImages) -> CalibrationRecord:
    return CalibrationRecord(
        source=calibration.source,
        count=len(calibration),
        batch_size=job.calibration.batch_size,
        digest=calibration.sha256,
        skipped=calibration.skipped,
    )


def _training(job: BuildJob, done: CompletedTraining) -> TrainingRecord:
    record, recipe = done.record, done.recipe
    return TrainingRecord(
        pictures=record.pictures,
        validation_pictures=record.validation_pictures,
        data_sha256=done.data_sha256,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        statistics_epochs=recipe.statistics_epochs,
        observers_epochs=recipe.observers_epochs,
        measure="boxes" if job.variant.task == "detection" else "top1",
        score_before=record.score_before,
        scores=record.scores,
        best_epoch=record.best_epoch,
        numerics=dict(record.numerics),
    )


def _versions(engine: Engine | NoEngine) -> dict[str, str]:
    versions = {name: version(name) for name in _PACKAGES}
    versions["python"] = platform.python_version()
    if isinstance(engine, Engine):
        versions["engine"] = f"{engine.name} {engine.version}"
    return versions
