"""A copy of an INT8 graph that gives every quantized tensor as an output, to compare runtimes with (issue 4, the ledger)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bundler.errors import BundleDamagedError
from bundler.graphs.exported_graph import INPUT
from bundler.graphs.foreign_graph import parse_graph

__all__ = ["GraphTensor", "sizes_of", "write_traced"]


_PLACE = re.compile(r"/?(.*?)/?QuantizeLinear(_\d+)?")  # as the exporter names it: /module/of/module/QuantizeLinear_1


@dataclass(frozen=True, kw_only=True)
class GraphTensor:
    """What a QuantizeLinear gives; `layer` is the operator's name as the exporter made it from the modules' names."""

    name: str
    layer: str
    scale: float
    zero_point: int


def write_traced(path: Path, traced: Path) -> tuple[GraphTensor, ...]:
    """Write the copy of the graph at `path`; return its additional outputs, in the order in which they are computed.

    Raises:
        BundleDamagedError: the file is not a graph that stands by itself, with constant scales and zero points.
    """
    try:
        model = parse_graph(path.read_bytes())
        tensors = tuple(_quantized_tensors(model))
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise BundleDamagedError(
            f"{path.name} is not a graph that this program exported: {error}",
            next_step="Build the bundle again: `bundler bundle MODEL --target TARGET`.",
        ) from error
    for tensor in tensors:
        model.graph.output.append(helper.make_tensor_value_info(tensor.name, TensorProto.UINT8, None))
    onnx.save(model, traced)
    return tensors


def _quantized_tensors(model: onnx.ModelProto) -> Iterator[GraphTensor]:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:  # in topological order
        if node.op_type != "QuantizeLinear":
            continue
        name, scale, zero_point = node.output[0], *(numpy_helper.to_array(constants[item]) for item in node.input[1:3])
        layer = _layer(node, producers.get(node.input[0]))
        yield GraphTensor(name=name, layer=layer, scale=float(scale), zero_point=int(zero_point))


def _layer(node: onnx.NodeProto, producer: onnx.NodeProto | None) -> str:
    """Return the module that it belongs to, and the operator where that has several or is the whole network."""
    found = _PLACE.fullmatch(node.name)
    module, number = found.groups() if found else (node.name, None)
    operator = f" ({producer.op_type})" if producer is not None and (number or not module) else ""
    return f"{module.replace('/', '.')}{operator}".strip()


def sizes_of(traced: Path, picture: NDArray[np.float32]) -> tuple[int, ...]:
    """Run a picture, float32 [1, 3, H, W], and return how many values each additional output has."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(traced, options, providers=["CPUExecutionProvider"])
    return tuple(values.size for values in session.run(None, {INPUT: picture})[1:])
