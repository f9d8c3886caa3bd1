"""BuiltModes: each mode's model built, exported, and run on the golden inputs in torch and in ONNX Runtime."""

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
from bundler.data.calibration_images import CalibrationImages
from bundler.device.numerics import sqnr_db, top1_agreement
from bundler.evaluation.accuracy import AccuracyTest, prepare_accuracy_test, require_accuracy, suspect
from bundler.evaluation.accuracy_fallback import AccuracyFallback, Attempt
from bundler.evaluation.training_objectives import training_objective
from bundler.graphs.exported_graph import ExportedGraph
from bundler.graphs.exporter import export_onnx
from bundler.graphs.host_runs import (
    TorchAgreement,
    agree_with_torch,
    digest_at_each_level,
    require_informative,
    run_reference,
)
from bundler.manifest import AccuracyRecord, BoxesRecord, FallbackRecord, summarize_accuracy
from bundler.models.network import Network, load_network
from bundler.models.specs import Mode
from bundler.packaging.staging import GoldenMode, model_path, samples_of
from bundler.pipeline.inputs import Inputs, TrainingInputs, more_calibration_images
from bundler.plan import BuildJob, PtqRequest
from bundler.quantization import LayerSqnr, double_precision, measure_layers, quantized_engine
from bundler.quantization.quantized_model import QuantizedModel, TrainingRun, quantize_aware, quantize_post_training
from bundler.targets import OptimizationLevel
from bundler.verification.layer_comparison import Trace
from bundler.verification.torch_trace import trace_torch

__all__ = ["BuiltMode", "BuiltModes", "QuantizedMode", "build_modes"]

Outputs = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class QuantizedMode:
    """How an INT8 mode was quantized, the digest of its outputs at each graph optimization level, and each layer's noise.

    `calibration` are the images that calibrated it, `steps` those of the accuracy fallback, and `torch` are the integers that
    torch computes, tensor by tensor.
    """

    model: QuantizedModel
    calibration: CalibrationImages
    steps: tuple[FallbackRecord, ...]
    torch: Trace
    levels: Mapping[OptimizationLevel, str]
    layers: tuple[LayerSqnr, ...]


@dataclass(frozen=True, kw_only=True)
class BuiltMode(GoldenMode):
    """A mode's graph with its golden outputs, and how ONNX Runtime agrees with torch; `quantized` is None for a float mode."""

    agreement: TorchAgreement
    accuracy: AccuracyRecord | BoxesRecord | None
    quantized: QuantizedMode | None


@dataclass(frozen=True, kw_only=True)
class BuiltModes:
    """Every mode of a job, torch's FP32 outputs on the golden inputs, and likely causes of a poor accuracy of FP32."""

    modes: Mapping[Mode, BuiltMode]
    reference: Outputs
    suspicions: tuple[str, ...]


def build_modes(job: BuildJob, inputs: Inputs, *, bundle: Path, workspace: Path) -> BuiltModes:
    """Build every mode of the job and write its graph below `bundle`; other files go into `workspace`.

    Raises:
        CheckpointError: the weights belong to another network.
        ExportError: a graph is not valid or does not compute what torch does, or the outputs are not informative.
        AccuracyError: an INT8 mode loses more than the job allows, after every step of the accuracy fallback.
    """
    network = load_network(job.variant, inputs.weights, int8_scope=job.int8_scope)
    exact = copy.deepcopy(network.float_model)
    with double_precision(exact):  # rounded to float32: the same numbers on every machine
        reference = _outputs(exact, torch.from_numpy(inputs.golden).double()).astype(np.float32)
    require_informative(job.variant.name, reference)
    build = _ModeBuilder(job=job, inputs=inputs, network=network, reference=reference, bundle=bundle, workspace=workspace)
    test: AccuracyTest | None = None
    training: tuple[TrainingInputs, AccuracyTest] | None = None
    suspicions: tuple[str, ...] = ()
    modes = dict[Mode, BuiltMode]()
    if job.fp32 or inputs.labelled is not None:
        graph = build.float_graph()
        if inputs.labelled is not None:
            test = prepare_accuracy_test(graph, inputs.labelled.validation, level=job.target.runtime.graph_optimization_level)
            suspicions = suspect(graph, test, inputs.weights.claims) if inputs.weights.trained else ()
            training = None if inputs.labelled.training is None else (inputs.labelled.training, test)
        modes["fp32"] = build.checked(graph, reference, None if test is None else test.fp32, None)
    if job.ptq is not None:
        modes["int8-ptq"] = build.post_training(job.ptq, test)
    if training is not None:
        modes["int8-qat"] = build.aware(*training)
    records = {mode: built.accuracy for mode, built in modes.items() if built.accuracy is not None}
    for mode, record in sorted(records.items()):
        console.detail(f"{mode}: {summarize_accuracy(record)}")
    if job.accuracy is not None and job.accuracy.max_drop is not None:
        require_accuracy(records, job.accuracy.max_drop)
    # INT8 first: a device runs it first.
    built = {mode: modes[mode] for mode in sorted(job.modes, reverse=True)}
    return BuiltModes(modes=built, reference=reference, suspicions=suspicions)


@dataclass(frozen=True, kw_only=True)
class _ModeBuilder:
    """Builds the modes of one job; `reference` are torch's FP32 outputs on the golden inputs."""

    job: BuildJob
    inputs: Inputs
    network: Network
    reference: Outputs
    bundle: Path
    workspace: Path

    def float_graph(self) -> ExportedGraph:
        console.step("Exporting fp32")
        # If only INT8 was requested, FP32 is measured for comparison and does not go into the bundle.
        path = self.bundle / model_path("fp32") if self.job.fp32 else self.workspace / "fp32.onnx"
        opset, task = self.job.target.export.opset, self.job.variant.task
        return export_onnx(self.network.float_model, self._sample, path, opset=opset, task=task, quantized=False)

    def post_training(self, request: PtqRequest, test: AccuracyTest | None) -> BuiltMode:
        """Quantize, export and measure int8-ptq; the accuracy fallback follows if it loses more than allowed."""
        calibration, profile = self.inputs.calibration, self.job.target.quantization
        numbers = count(1)

        def export(model: QuantizedModel) -> ExportedGraph:
            return self._export(model, f"int8-ptq-{next(numbers)}")

        model = quantize_post_training(self.network, calibration, profile)
        console.step("Exporting int8-ptq")
        graph = export(model)
        if test is None:
            return self._quantized("int8-ptq", model, graph, calibration.images, None)
        first = Attempt(model=model, calibration=calibration.images, graph=graph, accuracy=test.measure(graph))
        if request.accuracy is None or request.accuracy.max_drop is None:
            return self._quantized("int8-ptq", model, graph, calibration.images, first)
        fallback = AccuracyFallback(
            steps=profile.fallback,
            max_drop=request.accuracy.max_drop,
            network=self.network,
            test=test,
            quantize=lambda images, refined: quantize_post_training(self.network, replace(calibration, images=images), refined),
            more_images=lambda: more_calibration_images(self.job, self.inputs),
            export=export,
        )
        best = fallback.improve(first)
        return self._quantized("int8-ptq", best.model, best.graph, best.calibration, best)

    def aware(self, training: TrainingInputs, test: AccuracyTest) -> BuiltMode:
        """Train, export and measure int8-qat."""
        objective = training_objective(test, self.network.float_model, training.recipe)
        run = TrainingRun(
            images=training.images,
            objective=objective,
            measure=objective.measure,
            recipe=training.recipe,
            checkpoint=training.checkpoint,
            seed=self.job.seed,
        )
        calibration = self.inputs.calibration
        model = quantize_aware(self.network, run, calibration, self.job.target.quantization)
        console.step("Exporting int8-qat")
        graph = self._export(model, "int8-qat-1")
        attempt = Attempt(model=model, calibration=calibration.images, graph=graph, accuracy=test.measure(graph))
        return self._quantized("int8-qat", model, graph, calibration.images, attempt)

    @property
    def _sample(self) -> Tensor:
        return torch.from_numpy(self.inputs.golden)[:2]

    def _export(self, model: QuantizedModel, name: str) -> ExportedGraph:
        with quantized_engine(self.job.target.quantization.engine):
            return export_onnx(
                model.converted,
                self._sample,
                self.workspace / f"{name}.onnx",
                opset=self.job.target.export.opset,
                task=self.job.variant.task,
                quantized=True,
                float_layers=model.float_layers,
            )

    def _quantized(
        self, mode: Mode, model: QuantizedModel, graph: ExportedGraph, calibration: CalibrationImages, measured: Attempt | None
    ) -> BuiltMode:
        """Move the graph into the bundle, and compare it with torch; `measured` is None if there are no labelled images."""
        graph = replace(graph, path=graph.path.rename(self.bundle / model_path(mode)))
        golden = torch.from_numpy(self.inputs.golden)
        with quantized_engine(self.job.target.quantization.engine):
            torch_outputs = _outputs(model.converted, golden)
            layers = measure_layers(model.reference, model.converted, golden.split(1))
        quantized = QuantizedMode(
            model=model,
            calibration=calibration,
            steps=() if measured is None else measured.steps,
            torch=trace_torch(model, graph, self.inputs.golden, torch_outputs, self.workspace),
            levels=digest_at_each_level(graph, self.inputs.golden[: samples_of(graph, self.job.target)]),
            layers=layers,
        )
        return self.checked(graph, torch_outputs, None if measured is None else measured.accuracy, quantized)

    def checked(
        self,
        graph: ExportedGraph,
        torch_outputs: Outputs,
        accuracy: AccuracyRecord | BoxesRecord | None,
        quantized: QuantizedMode | None,
    ) -> BuiltMode:
        """Run the graph on the golden inputs, and require that it computes what torch does."""
        target, reference = self.job.target, self.reference
        outputs = run_reference(graph, self.inputs.golden, target.runtime.graph_optimization_level)
        agreement = agree_with_torch(graph, outputs, torch_outputs=torch_outputs, fp32_outputs=reference, profile=target.export)
        built = BuiltMode(graph=graph, outputs=outputs, agreement=agreement, accuracy=accuracy, quantized=quantized)
        console.detail(_summary(built, reference))
        return built


def _outputs(model: nn.Module, images: Tensor) -> Outputs:
    with torch.inference_mode():
        outputs: Outputs = model(images).numpy()
    return outputs


def _summary(mode: BuiltMode, reference: Outputs) -> str:
    size = f"{mode.graph.bytes / 1e6:.1f} MB"
    if not mode.graph.quantized:
        return size
    facts = [size, f"SQNR against FP32 {sqnr_db(reference, mode.outputs):.1f} dB"]
    if reference.ndim == 2:
        facts.append(f"same top-1 as FP32 on {top1_agreement(reference, mode.outputs):.0%}")
    if mode.agreement.max_steps is not None:
        facts.append(f"within {mode.agreement.max_steps} quantization steps of torch's INT8")
    return ", ".join(facts)
