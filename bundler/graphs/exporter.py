"""Export of a float or converted model to ONNX through the TorchScript exporter."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from bundler.errors import ExportError
from bundler.graphs.exported_graph import BATCH, INPUT, OUTPUTS, ExportedGraph, ensure_graph
from bundler.graphs.passes.integer_outputs import release_logits, release_raw_maps
from bundler.graphs.passes.rounding_ambiguity import settle_ties
from bundler.graphs.passes.tidying import tidy_graph
from bundler.models.specs import Task

__all__ = ["export_onnx"]


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
    """Write `path` and check it.

    Args:
        model: float or converted, in eval mode; a converted one inside `quantized_engine`.
        sample: float32 [2, 3, H, W]; its size becomes the graph's, its batch axis is dynamic.
        path: of the ONNX file.
        opset: of the graph.
        task: names the output.
        quantized: whether Quantize and Dequantize nodes are expected.
        float_layers: how many convolutions and matrix products of a quantized model are meant to stay in float.

    Raises:
        ExportError: the exporter has no form for an operator, or the graph does not hold what is ensured.
    """
    if model.training:
        raise ExportError(f"{type(model).__name__} is in train mode", next_step="Call `eval()` before the export.")
    with warnings.catch_warnings(), _silent_stdout():
        warnings.simplefilter("ignore")  # the exporter announces its own end
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
                next_step="Report it with the model's name and `bundler doctor --json`.",
            ) from error
    tidy_graph(path)
    rounding = release_logits(path, OUTPUTS[task]) if quantized and task == "classification" else None
    ties = settle_ties(path) if quantized else ()
    if quantized and task == "detection":
        release_raw_maps(path, OUTPUTS[task])
    return ensure_graph(
        path, opset=opset, task=task, quantized=quantized, float_layers=float_layers, rounding=rounding, ties=ties
    )


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """Keep stdout for results: before it raises, the exporter's C++ half prints a whole graph to file descriptor 1."""
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
