"""The Manifest of what was built, from the records of each step."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from importlib.metadata import version

from bundler.data.calibration_images import Dataset
from bundler.data.preprocessing import Preprocessing
from bundler.engines.container_engine import Engine
from bundler.errors import EngineUnavailableError
from bundler.graphs.exported_graph import INPUT, OUTPUTS
from bundler.manifest import (
    MANIFEST_SCHEMA,
    CalibrationRecord,
    Evidence,
    FleetRecord,
    ImageRecord,
    LayerRecord,
    LedgerRecord,
    Manifest,
    ModelRecord,
    ModeRecord,
    OnnxRecord,
    PreprocessingRecord,
    QuantizationRecord,
    SaturationRecord,
    TargetRecord,
    TensorRecord,
    TieRecord,
    TrainingRecord,
    WeightsRecord,
    judge_exactness,
    judge_mode,
)
from bundler.models.specs import Mode
from bundler.packaging.staging import model_path
from bundler.pipeline.inputs import Material
from bundler.pipeline.modes import BuiltModes
from bundler.plan import BuildJob
from bundler.quantization import training

__all__ = ["describe", "quantization_record"]

_PACKAGES = ("edge-bundler", "torch", "torchvision", "onnx", "onnxruntime", "numpy", "pillow", "docker")


def describe(
    job: BuildJob,
    material: Material,
    built: BuiltModes,
    evidence: Mapping[str, tuple[Evidence, ...]],
    fleet: Mapping[str, tuple[FleetRecord, ...]],
    ledgers: Mapping[str, LedgerRecord],
    image: ImageRecord | None,
    engine: Engine | EngineUnavailableError,
) -> Manifest:
    """Put the manifest together; whether a mode is supported is judged from its evidence alone."""
    weights = material.weights
    return Manifest(
        schema=MANIFEST_SCHEMA,
        bundle=job.identifier,
        model=ModelRecord(
            name=job.variant.name,
            row=job.row.name,
            task=job.variant.task,
            num_classes=weights.num_classes,
            class_names=weights.class_names,
            input=TensorRecord(name=INPUT, dtype="float32", shape=(0, 3, *job.preprocessing.input_size)),
            output=TensorRecord(name=OUTPUTS[job.variant.task], dtype="float32", shape=(0, *built.reference.shape[1:])),
            preprocessing=_preprocessing(job.preprocessing),
            suspicions=built.suspicions,
            weights=WeightsRecord(
                source=weights.source, sha256=weights.sha256, trained=weights.trained, network=weights.network
            ),
        ),
        target=TargetRecord(name=job.target.name, platform=job.target.platform),
        modes=tuple(
            _mode(
                job,
                built,
                mode,
                evidence[mode],
                fleet.get(mode, ()),
                quantization_record(job, material, built, mode),
                ledgers.get(mode),
            )
            for mode in sorted(built.modes)
        ),
        image=image,
        versions=_versions(engine),
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
    job: BuildJob,
    built: BuiltModes,
    mode: Mode,
    evidence: tuple[Evidence, ...],
    fleet: tuple[FleetRecord, ...],
    quantization: QuantizationRecord | None,
    ledger: LedgerRecord | None,
) -> ModeRecord:
    supported, reason = judge_mode(evidence)
    exact, exact_reason = judge_exactness(quantization, evidence, fleet)
    graph = built.modes[mode].graph
    return ModeRecord(
        name=mode,
        supported=supported,
        reason=reason,
        scope=job.int8_scope if graph.quantized else "whole",
        onnx=OnnxRecord(
            path=model_path(mode),
            sha256=graph.sha256,
            bytes=graph.bytes,
            opset=graph.opset,
            onnxruntime_minimum=graph.runtime.onnxruntime,
        ),
        exact=exact,
        exact_reason=exact_reason,
        accuracy=built.modes[mode].accuracy,
        quantization=quantization,
        evidence=evidence,
        fleet=fleet,
        ledger=ledger,
    )


def quantization_record(job: BuildJob, material: Material, built: BuiltModes, mode: Mode) -> QuantizationRecord | None:
    """Return how a mode was quantized and what was proved of its graph; None for a float mode."""
    graph, agreement, quantized = built.modes[mode].graph, built.modes[mode].agreement, built.modes[mode].quantized
    if quantized is None:
        return None
    attempt = quantized.attempt
    return QuantizationRecord(
        engine=job.target.quantization.engine,
        qconfig=job.target.quantization.qconfig,
        calibration=None if attempt.model.training else _calibration(job, attempt.calibration),
        training=_training(job, material, attempt.model.training) if attempt.model.training else None,
        quantize_nodes=graph.quantize_nodes,
        dequantize_nodes=graph.dequantize_nodes,
        float_operators=graph.float_operators,
        torch_max_steps=agreement.max_steps,
        torch_equal_share=agreement.equal_share,
        refinements=attempt.model.profile.options,
        recovery=attempt.steps,
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
            TieRecord(
                operator=proof.operator,
                op_type=proof.op_type,
                inputs=proof.inputs,
                ambiguous=proof.ambiguous_before,
                nudge=proof.nudge,
            )
            for proof in graph.ties
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
    """JSON knows no infinity."""
    return None if sqnr_db is None or math.isinf(sqnr_db) else sqnr_db


def _calibration(job: BuildJob, calibration: Dataset) -> CalibrationRecord:
    return CalibrationRecord(
        source=calibration.source,
        count=len(calibration),
        batch_size=job.calibration.batch_size,
        digest=calibration.sha256,
        skipped=calibration.skipped,
    )


def _training(job: BuildJob, material: Material, done: training.TrainingRecord) -> TrainingRecord:
    pictures, recipe = material.training, job.recipe
    assert pictures is not None  # noqa: S101  it was trained with them
    return TrainingRecord(
        pictures=done.pictures,
        validation_pictures=done.validation_pictures,
        data_sha256=pictures.sha256,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        statistics_epochs=recipe.statistics_epochs,
        observers_epochs=recipe.observers_epochs,
        measure="boxes" if job.variant.task == "detection" else "top1",
        score_before=done.score_before,
        scores=done.scores,
        best_epoch=done.best_epoch,
        numerics=dict(done.numerics),
    )


def _versions(engine: Engine | EngineUnavailableError) -> dict[str, str]:
    versions = {name: version(name) for name in _PACKAGES}
    versions["python"] = platform.python_version()
    if isinstance(engine, Engine):
        versions["engine"] = f"{engine.name} {engine.version}"
    return versions
