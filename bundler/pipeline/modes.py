"""BuiltModes: each mode's model built, exported, and run on the golden pictures in torch and in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bundler import console
from bundler.export.agreement import sqnr_db, top1_agreement
from bundler.export.graph import ExportedGraph
from bundler.export.onnx_export import export_onnx
from bundler.export.reference import (
    TorchAgreement,
    agree_with_torch,
    digest_at_each_level,
    require_informative,
    run_reference,
)
from bundler.manifest import AccuracyRecord
from bundler.models.detector import QuantizableDetector
from bundler.models.registry import load_parser
from bundler.models.specs import Mode
from bundler.packaging.staging import GoldenMode, model_path, samples_of
from bundler.pipeline.accuracy import measure_accuracy, require_accuracy
from bundler.pipeline.material import Material
from bundler.pipeline.quantizing import calibrated, trained
from bundler.plan import BuildJob
from bundler.quantization import LayerNoise, convert, measure_layers, quantized_engine
from bundler.quantization.training import TrainingRecord
from bundler.targets import OptimizationLevel

__all__ = ["BuiltModes", "build_modes"]

Outputs = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class BuiltModes:
    """Graphs with golden outputs, torch's FP32 outputs as reference, and how ONNX Runtime agrees with torch.

    `levels` gives the digest of each INT8 mode's golden outputs at each graph optimization level.
    """

    modes: Mapping[Mode, GoldenMode]
    reference: Outputs
    agreement: Mapping[Mode, TorchAgreement]
    levels: Mapping[Mode, Mapping[OptimizationLevel, str]]
    accuracy: Mapping[Mode, AccuracyRecord]
    layers: Mapping[Mode, tuple[LayerNoise, ...]]
    training: TrainingRecord | None


def build_modes(job: BuildJob, material: Material, staging: Path) -> BuiltModes:
    """Build every mode of the job and write its graph below `staging`.

    Raises:
        CheckpointError: the weights belong to another network.
        ExportError: a graph does not hold, does not compute what torch does, or the outputs would prove nothing.
        AccuracyError: an INT8 mode loses more than the job allows.
    """
    parser = load_parser(job.variant)
    options: dict[str, Any] = {"num_classes": material.weights.num_classes}
    if job.variant.task == "detection":
        options["int8_scope"] = job.int8_scope
    golden = torch.from_numpy(material.golden)
    float_model = parser(**options, weights=material.weights.state_dict)
    reference = _outputs(float_model, golden)
    require_informative(job.variant.name, reference)

    modes: dict[Mode, GoldenMode] = {}
    agreement: dict[Mode, TorchAgreement] = {}
    levels: dict[Mode, Mapping[OptimizationLevel, str]] = {}
    layers: dict[Mode, tuple[LayerNoise, ...]] = {}
    training: TrainingRecord | None = None
    for mode in sorted(job.modes, reverse=True):  # INT8 first: it is the one to wait for, and a device runs it first
        if mode == "fp32":
            torch_outputs = reference
            console.step("Exporting fp32")
            graph = _export(job, float_model, golden, staging / model_path(mode), mode)
        else:
            if mode == "int8-qat":
                prepared, before, training = trained(job, material, parser, options, float_model)
            else:
                prepared, before = calibrated(job, material, parser, options, float_model)
            converted = convert(prepared, job.target.quantization)
            console.step(f"Exporting {mode}")
            with quantized_engine(job.target.quantization.engine):
                torch_outputs = _outputs(converted, golden)
                graph = _export(job, converted, golden, staging / model_path(mode), mode)
                layers[mode] = measure_layers(before, converted, golden.split(1))
        outputs = run_reference(graph, material.golden, job.target.runtime.graph_optimization_level)
        if graph.quantized:
            levels[mode] = digest_at_each_level(graph, material.golden[: samples_of(graph, job.target)])
        agreement[mode] = agree_with_torch(
            graph, outputs, torch_outputs=torch_outputs, fp32_outputs=reference, profile=job.target.export
        )
        modes[mode] = GoldenMode(graph=graph, outputs=outputs)
        console.detail(_summary(modes[mode], agreement[mode], reference))
    accuracy: Mapping[Mode, AccuracyRecord] = {}
    if material.labelled is not None:
        graphs = {mode: built.graph for mode, built in modes.items()}
        if "fp32" not in graphs:  # to compare with; it does not go into the bundle
            graphs["fp32"] = _export(job, float_model, golden, staging.parent / "fp32.onnx", "fp32")
        accuracy = measure_accuracy(graphs, material.labelled, level=job.target.runtime.graph_optimization_level)
        if job.max_drop is not None:
            require_accuracy(accuracy, job.max_drop)
    return BuiltModes(
        modes=modes,
        reference=reference,
        agreement=agreement,
        levels=levels,
        accuracy=accuracy,
        layers=layers,
        training=training,
    )


def _outputs(model: nn.Module, pictures: Tensor) -> Outputs:
    with torch.inference_mode():
        outputs: Outputs = model(pictures).numpy()
    return outputs


def _export(job: BuildJob, model: nn.Module, golden: Tensor, path: Path, mode: Mode) -> ExportedGraph:
    quantized = mode != "fp32"
    return export_onnx(
        model,
        golden[:2],
        path,
        opset=job.target.export.opset,
        task=job.variant.task,
        quantized=quantized,
        float_convolutions=model.float_convolutions() if quantized and isinstance(model, QuantizableDetector) else 0,
    )


def _summary(mode: GoldenMode, agreement: TorchAgreement, reference: Outputs) -> str:
    size = f"{mode.graph.bytes / 1e6:.1f} MB"
    if not mode.graph.quantized:
        return size
    facts = [size, f"{sqnr_db(reference, mode.outputs):.1f} dB to FP32"]
    if reference.ndim == 2:
        facts.append(f"same top-1 as FP32 on {top1_agreement(reference, mode.outputs):.0%}")
    if agreement.max_steps is not None:
        facts.append(f"within {agreement.max_steps} steps of torch's INT8")
    return ", ".join(facts)
