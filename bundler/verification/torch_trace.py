"""Torch's INT8 tensors on the first golden input, under the names of the tensors of the exported graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bundler.device.tracing import OUTPUTS, sampled
from bundler.graphs.exported_graph import ExportedGraph
from bundler.graphs.instrumentation import instrument, sizes_of
from bundler.graphs.serialization import to_proto
from bundler.quantization import quantized_engine, trace_integers
from bundler.quantization.quantized_model import QuantizedModel
from bundler.verification.layer_comparison import Trace

__all__ = ["trace_torch"]


def trace_torch(model: QuantizedModel, graph: ExportedGraph, golden: NDArray[np.float32], outputs: Any, folder: Path) -> Trace:
    """Return torch's integers on the first golden input under the names of the graph's tensors, and its outputs.

    Both compute the same tensors in the same order: a tensor of the graph corresponds to the next one of torch with the same
    number of values and the same zero point.
    """
    if graph.model is None:
        raise ValueError(f"{graph.path.name} is a float graph, without quantized tensors")
    instrumented = folder / f"{graph.path.stem}-instrumented.onnx"
    tensors = instrument(to_proto(graph.model), instrumented)
    with quantized_engine(model.profile.engine):
        integers = trace_integers(model.converted, torch.from_numpy(golden[:1]))
    found: dict[str, NDArray[Any]] = {OUTPUTS: outputs}
    position = 0
    for tensor, size in zip(tensors, sizes_of(instrumented, golden[:1]), strict=True):
        fits = (
            index
            for index in range(position, len(integers))
            if integers[index].values.size == size and integers[index].zero_point == tensor.zero_point
        )
        index = next(fits, None)
        if index is not None:
            found[tensor.name] = sampled(integers[index].values)
            position = index + 1
    return found
