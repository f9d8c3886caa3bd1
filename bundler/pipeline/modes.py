"""BuiltModes: each mode's model built, exported, and run on the golden pictures in torch and in ONNX Runtime."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bundler import console
from bundler.evaluation.accuracy import AccuracyTest, prepare_test, require_accuracy, suspect
from bundler.graphs.comparison import sqnr_db, top1_agreement
from bundler.graphs.exported_graph import ExportedGraph
from bundler.graphs.exporter import export_onnx
from bundler.graphs.host_runs import (
    TorchAgreement,
    agree_with_torch,
    digest_at_each_level,
    require_informative,
    run_reference,
)
from bundler.manifest import AccuracyRecord, BoxesRecord, summarize_accuracy
from bundler.models.specs import Mode
from bundler.packaging.staging import GoldenMode, model_path, samples_of
from bundler.pipeline.inputs import Material
from bundler.pipeline.network import Network, load_network
from bundler.pipeline.quantizing import QuantizedModel, calibrated, trained
from bundler.pipeline.recovery import Attempt, recover
from bundler.pipeline.torch_trace import trace_torch
from bundler.plan import BuildJob
from bundler.quantization import LayerNoise, double_precision, measure_layers, quantized_engine
from bundler.targets import OptimizationLevel
from bundler.verification.layer_comparison import Trace

__all__ = ["BuiltMode", "BuiltModes", "QuantizedMode", "build_modes"]

Outputs = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class QuantizedMode:
    """How an INT8 mode came about, the digest of its outputs at each graph optimization level, and each layer's noise.

    `torch` is what torch's own INT8 computes, tensor by tensor.
    """

    attempt: Attempt
    torch: Trace
    levels: Mapping[OptimizationLevel, str]
    layers: tuple[LayerNoise, ...]


@dataclass(frozen=True, kw_only=True)
class BuiltMode(GoldenMode):
    """A mode's graph with its golden outputs, and how ONNX Runtime agrees with torch; `quantized` is None for a float mode."""

    agreement: TorchAgreement
    accuracy: AccuracyRecord | BoxesRecord | None
    quantized: QuantizedMode | None


@dataclass(frozen=True, kw_only=True)
class BuiltModes:
    """Every mode of a job, torch's FP32 outputs on the golden pictures as reference, and what FP32's accuracy may be due to."""

    modes: Mapping[Mode, BuiltMode]
    reference: Outputs
    suspicions: tuple[str, ...]


def build_modes(job: BuildJob, material: Material, staging: Path) -> BuiltModes:
    """Build every mode of the job and write its graph below `staging`.

    Raises:
        CheckpointError: the weights belong to another network.
        ExportError: a graph does not hold, does not compute what torch does, or the outputs would prove nothing.
        AccuracyError: an INT8 mode loses more than the job allows, whatever the profile tried.
    """
    network = load_network(job, material)
    golden = torch.from_numpy(material.golden)
    exact = copy.deepcopy(network.float_model)
    with double_precision(exact):  # rounded to float32: the same numbers on every machine
        reference = _outputs(exact, golden.double()).astype(np.float32)
    require_informative(job.variant.name, reference)
    test, modes = None, dict[Mode, BuiltMode]()
    suspicions: tuple[str, ...] = ()
    if "fp32" in job.modes or material.labelled is not None:
        console.step("Exporting fp32")
        # Where only INT8 is asked for, it is there to compare with, and does not go into the bundle.
        path = staging / model_path("fp32") if "fp32" in job.modes else staging.parent / "fp32.onnx"
        opset = job.target.export.opset
        graph = export_onnx(network.float_model, golden[:2], path, opset=opset, task=job.variant.task, quantized=False)
        if material.labelled is not None:
            test = prepare_test(graph, material.labelled, level=job.target.runtime.graph_optimization_level)
            suspicions = suspect(graph, test, material.weights.claims) if material.weights.trained else ()
        accuracy = test.fp32 if test is not None else None
        modes["fp32"] = _checked(job, material, graph, reference, reference, accuracy, None)
    for mode in job.modes:
        if mode != "fp32":
            modes[mode] = _quantized(job, material, network, mode, reference, test, staging)
    records = {mode: built.accuracy for mode, built in modes.items() if built.accuracy is not None}
    for mode, record in sorted(records.items()):
        console.detail(f"{mode}: {summarize_accuracy(record)}")
    if job.max_drop is not None:
        require_accuracy(records, job.max_drop)
    # INT8 first: a device runs it first.
    built = {mode: modes[mode] for mode in sorted(job.modes, reverse=True)}
    return BuiltModes(modes=built, reference=reference, suspicions=suspicions)


def _quantized(
    job: BuildJob,
    material: Material,
    network: Network,
    mode: Mode,
    reference: Outputs,
    test: AccuracyTest | None,
    staging: Path,
) -> BuiltMode:
    """Quantize, export and measure one INT8 mode; where it loses too much, with whatever the profile has against that."""
    golden = torch.from_numpy(material.golden)
    profile = job.target.quantization

    def export(model: QuantizedModel) -> ExportedGraph:
        path = staging.parent / f"{mode}-{next(numbers)}.onnx"
        with quantized_engine(profile.engine):
            return export_onnx(
                model.converted,
                golden[:2],
                path,
                opset=job.target.export.opset,
                task=job.variant.task,
                quantized=True,
                float_layers=model.float_layers,
            )

    numbers = count(1)
    if mode == "int8-qat":
        assert test is not None  # noqa: S101  the plan refuses int8-qat without data
        model = trained(job, material, network, test)
    else:
        model = calibrated(job, network, pictures=material.calibration, profile=profile)
    console.step(f"Exporting {mode}")
    graph = export(model)
    accuracy = None if test is None else test.measure(graph)
    attempt = Attempt(model=model, calibration=material.calibration, graph=graph, accuracy=accuracy)
    if test is not None and job.max_drop is not None and mode == "int8-ptq":
        attempt = recover(attempt, job, material, network, test=test, max_drop=job.max_drop, export=export)
    path = staging / model_path(mode)
    graph, model = replace(attempt.graph, path=attempt.graph.path.replace(path)), attempt.model
    with quantized_engine(profile.engine):
        torch_outputs = _outputs(model.converted, golden)
        layers = measure_layers(model.reference, model.converted, golden.split(1))
    levels = digest_at_each_level(graph, material.golden[: samples_of(graph, job.target)])
    trace = trace_torch(model, graph, material.golden, torch_outputs, staging.parent)
    quantized = QuantizedMode(attempt=attempt, torch=trace, levels=levels, layers=layers)
    return _checked(job, material, graph, torch_outputs, reference, attempt.accuracy, quantized)


def _checked(
    job: BuildJob,
    material: Material,
    graph: ExportedGraph,
    torch_outputs: Outputs,
    reference: Outputs,
    accuracy: AccuracyRecord | BoxesRecord | None,
    quantized: QuantizedMode | None,
) -> BuiltMode:
    outputs = run_reference(graph, material.golden, job.target.runtime.graph_optimization_level)
    agreement = agree_with_torch(graph, outputs, torch_outputs=torch_outputs, fp32_outputs=reference, profile=job.target.export)
    built = BuiltMode(graph=graph, outputs=outputs, agreement=agreement, accuracy=accuracy, quantized=quantized)
    console.detail(_summary(built, reference))
    return built


def _outputs(model: nn.Module, pictures: Tensor) -> Outputs:
    with torch.inference_mode():
        outputs: Outputs = model(pictures).numpy()
    return outputs


def _summary(mode: BuiltMode, reference: Outputs) -> str:
    size = f"{mode.graph.bytes / 1e6:.1f} MB"
    if not mode.graph.quantized:
        return size
    facts = [size, f"{sqnr_db(reference, mode.outputs):.1f} dB to FP32"]
    if reference.ndim == 2:
        facts.append(f"same top-1 as FP32 on {top1_agreement(reference, mode.outputs):.0%}")
    if mode.agreement.max_steps is not None:
        facts.append(f"within {mode.agreement.max_steps} steps of torch's INT8")
    return ", ".join(facts)
