"""Export of a float or converted model to ONNX: torch's TorchScript exporter, followed by the passes of this package."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn

from bundler.errors import ExportError
from bundler.graphs.exported_graph import BATCH, INPUT, OUTPUTS, ExportedGraph, invalid, save_graph
from bundler.graphs.passes.computed_zero_points import RemoveComputedZeroPointsPass
from bundler.graphs.passes.constants import ConstantsToInitializersPass
from bundler.graphs.passes.inferred_shapes import InferShapesPass
from bundler.graphs.passes.logits_rounding import StripLogitsRoundingPass
from bundler.graphs.passes.raw_map_rounding import StripRawMapRoundingPass
from bundler.graphs.passes.redundant_casts import RemoveRedundantCastsPass
from bundler.graphs.passes.rounding_ambiguity import PerturbScalesPass
from bundler.graphs.passes.unused import RemoveUnusedPass
from bundler.graphs.serialization import load_graph
from bundler.models.specs import Task

__all__ = ["export_onnx", "export_with_torch", "simplify"]


def export_onnx(
    model: nn.Module,
    sample: Tensor,
    path: Path,
    *,
    opset: int,
    task: Task = "classification",
    quantized: bool,
    float_layers: int = 0,
) -> ExportedGraph:
    """Export a model to `path`: load what torch writes, run the passes over it in memory, check it and save it.

    Args:
        model: float or converted, in eval mode; a converted one inside `quantized_engine`.
        sample: float32 [2, 3, H, W]; its size becomes the graph's, its batch axis is dynamic.
        path: of the ONNX file.
        opset: of the graph.
        task: names the output.
        quantized: whether QuantizeLinear and DequantizeLinear nodes are expected.
        float_layers: how many convolutions and matrix products of a quantized model are meant to stay in float.

    Raises:
        ExportError: the exporter has no form for an operator, a pass cannot be run, or the graph fails its validation.
    """
    graph = export_with_torch(model, sample, path, opset=opset, task=task, quantized=quantized)
    strip_logits, perturb_scales = StripLogitsRoundingPass(), PerturbScalesPass()
    try:
        simplify(graph)
        if quantized and task == "classification":
            strip_logits(graph)
        if quantized:
            perturb_scales(graph)
        if quantized and task == "detection":
            StripRawMapRoundingPass()(graph)
        RemoveUnusedPass()(graph)  # scales that were shared until each reader got its own
    except ir.passes.InvariantError as error:
        raise invalid(path, str(error)) from error
    saved = save_graph(graph, path, opset=opset, task=task, quantized=quantized, float_layers=float_layers)
    return replace(saved, rounding=strip_logits.rounding, perturbations=perturb_scales.perturbations)


def export_with_torch(
    model: nn.Module, sample: Tensor, path: Path, *, opset: int, task: Task = "classification", quantized: bool
) -> ir.Model:
    """Write `path` with the TorchScript exporter and return the graph in memory.

    Raises:
        ExportError: the model is in train mode, or the exporter has no form for an operator.
    """
    if model.training:
        raise ExportError(f"{type(model).__name__} is in train mode", next_step="Call `eval()` before the export.")
    with warnings.catch_warnings(), _silent_stdout():
        warnings.simplefilter("ignore")  # the exporter's deprecation warnings
        try:
            # The exporter traces a quantized model by itself, twice, to compare; ours is compared with ONNX Runtime afterwards.
            traced = torch.jit.trace(model, (sample,), check_trace=False) if quantized else model
            torch.onnx.export(
                traced,
                (sample,),
                str(path),
                dynamo=False,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[OUTPUTS[task]],
                dynamic_axes={INPUT: {0: BATCH}, OUTPUTS[task]: {0: BATCH}},
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            raise ExportError(
                f"torch cannot export {type(model).__name__} to opset {opset}: {str(error).splitlines()[0]}",
                next_step="Build the model from operators that ONNX has in that opset: https://onnx.ai/onnx/operators/.",
            ) from error
    return load_graph(path)


def simplify(graph: ir.Model) -> None:
    """Simplify what the TorchScript exporter wrote; the graph computes the same.

    Afterwards weights and scales are initializers, and values have types and shapes.

    Raises:
        onnx_ir.passes.InvariantError: a pass does not give what it ensures.
    """
    for simplification in (
        RemoveComputedZeroPointsPass(),
        RemoveUnusedPass(),
        ConstantsToInitializersPass(),
        InferShapesPass(),
        RemoveRedundantCastsPass(),
    ):
        simplification(graph)


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """Keep stdout for results: before it raises, the exporter's C++ code prints the whole graph to file descriptor 1."""
    sys.stdout.flush()
    stdout, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(nowhere)
