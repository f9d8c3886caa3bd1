"""BuiltModes: each mode's model built, exported, and run on the golden pictures in torch and in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bundler import console
from bundler.datasets import Dataset
from bundler.export.agreement import sqnr_db, top1_agreement
from bundler.export.graph import ExportedGraph
from bundler.export.onnx_export import export_onnx
from bundler.export.reference import TorchAgreement, agree_with_torch, require_informative, run_reference
from bundler.models.detector import QuantizableDetector
from bundler.models.registry import load_parser
from bundler.models.specs import Mode
from bundler.packaging.staging import GoldenMode, model_path
from bundler.pipeline.material import Material
from bundler.plan import BuildJob
from bundler.quantization import calibrate, convert, quantized_engine

__all__ = ["BuiltModes", "build_modes"]

Outputs = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class BuiltModes:
    """Graphs with golden outputs, torch's FP32 outputs as reference, and how ONNX Runtime agrees with torch."""

    modes: Mapping[Mode, GoldenMode]
    reference: Outputs
    agreement: Mapping[Mode, TorchAgreement]


def build_modes(job: BuildJob, material: Material, staging: Path) -> BuiltModes:
    """Build every mode of the job and write its graph below `staging`.

    Raises:
        CheckpointError: the weights belong to another network.
        ExportError: a graph does not hold, does not compute what torch does, or the outputs would prove nothing.
    """
    parser = load_parser(job.variant)
    weights: dict[str, Any] = {"weights": material.weights.state_dict, "num_classes": material.weights.num_classes}
    if job.variant.task == "detection":
        weights["int8_scope"] = job.int8_scope
    golden = torch.from_numpy(material.golden)
    float_model = parser(**weights)
    reference = _outputs(float_model, golden)
    require_informative(job.variant.name, reference)

    modes: dict[Mode, GoldenMode] = {}
    agreement: dict[Mode, TorchAgreement] = {}
    for mode in sorted(job.modes, reverse=True):  # INT8 first: it is the one to wait for, and a device runs it first
        if mode == "fp32":
            torch_outputs = reference
            console.step("Exporting fp32")
            graph = _export(job, float_model, golden, staging, mode)
        else:
            prepared = parser(**weights, quantize=True, target=job.target.quantization)
            _calibrate(job, prepared, material.calibration)
            converted = convert(prepared, job.target.quantization)
            console.step(f"Exporting {mode}")
            with quantized_engine(job.target.quantization.engine):
                torch_outputs = _outputs(converted, golden)
                graph = _export(job, converted, golden, staging, mode)
        outputs = run_reference(graph, material.golden, job.target.runtime.graph_optimization_level)
        agreement[mode] = agree_with_torch(
            graph, outputs, torch_outputs=torch_outputs, fp32_outputs=reference, profile=job.target.export
        )
        modes[mode] = GoldenMode(graph=graph, outputs=outputs)
        console.detail(_summary(modes[mode], agreement[mode], reference))
    return BuiltModes(modes=modes, reference=reference, agreement=agreement)


def _outputs(model: nn.Module, pictures: Tensor) -> Outputs:
    with torch.inference_mode():
        outputs: Outputs = model(pictures).numpy()
    return outputs


def _export(job: BuildJob, model: nn.Module, golden: Tensor, staging: Path, mode: Mode) -> ExportedGraph:
    quantized = mode != "fp32"
    return export_onnx(
        model,
        golden[:2],
        staging / model_path(mode),
        opset=job.target.export.opset,
        task=job.variant.task,
        quantized=quantized,
        float_convolutions=model.float_convolutions() if quantized and isinstance(model, QuantizableDetector) else 0,
    )


def _calibrate(job: BuildJob, prepared: nn.Module, pictures: Dataset) -> None:
    console.step(f"Calibrating with {pictures} for {job.target.quantization.engine}")
    with console.progress("calibrating", len(pictures)) as advance:
        calibrate(prepared, _counted(pictures, job.calibration.batch_size, advance))


def _counted(pictures: Dataset, batch_size: int, advance: Callable[[int], Any]) -> Iterator[Tensor]:
    for batch in pictures.batches(batch_size):
        yield torch.from_numpy(batch)
        advance(len(batch))


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
