"""Torch's own INT8 tensors on the first golden input, under the names of the exported graph's tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bundler.graphs.exported_graph import ExportedGraph
from bundler.graphs.instrumentation import instrument, sizes_of
from bundler.graphs.serialization import to_proto
from bundler.pipeline.quantizing import QuantizedModel
from bundler.quantization import quantized_engine, trace_integers
from bundler.verification.layer_comparison import OUTPUTS, VALUES, Trace

__all__ = ["trace_torch"]


def trace_torch(model: QuantizedModel, graph: ExportedGraph, golden: NDArray[np.float32], outputs: Any, folder: Path) -> Trace:
    """Return torch's integers on the first golden picture under the names of the graph's tensors, and its outputs.

    Both compute the same tensors in the same order; a tensor of the graph belongs to the next one of torch that has as many
    values and the same zero point.
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
            found[tensor.name] = _sampled(integers[index].values)
            position = index + 1
    return found


def _sampled(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    flat = values.reshape(-1)
    return flat[:: max(-(-flat.size // VALUES), 1)]
