"""Instrumentation of an INT8 graph: every quantized tensor becomes an output, to compare runtimes layer by layer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bundler.errors import BundleDamagedError
from bundler.graphs.exported_graph import INPUT
from bundler.graphs.foreign_graph import parse_graph
from bundler.graphs.host_sessions import make_session

__all__ = ["GraphTensor", "instrument", "instrument_file", "sizes_of"]

_NODE_NAME = re.compile(r"/?(.*?)/?QuantizeLinear(_\d+)?")  # as the exporter names it: /module/of/module/QuantizeLinear_1


@dataclass(frozen=True, kw_only=True)
class GraphTensor:
    """The output of a QuantizeLinear; `layer` is the name that the exporter made from the modules' names."""

    name: str
    layer: str
    scale: float
    zero_point: int


def instrument(model: onnx.ModelProto, path: Path) -> tuple[GraphTensor, ...]:
    """Add an output for each quantized tensor, write the graph to `path`, and return these tensors in the order of the graph.

    Raises:
        ValueError: a scale or zero point is not one constant, or the operator or its inputs are not what ONNX defines.
    """
    try:
        tensors = tuple(_quantized_tensors(model))
    except (TypeError, KeyError, IndexError) as error:
        raise ValueError(f"a QuantizeLinear has no constant scale and zero point ({error})") from error
    for tensor in tensors:
        model.graph.output.append(helper.make_tensor_value_info(tensor.name, TensorProto.UINT8, None))
    onnx.save(model, path)
    return tensors


def instrument_file(source: Path, path: Path) -> tuple[GraphTensor, ...]:
    """Do the same with a file of a bundle, which somebody else may have made.

    Raises:
        BundleDamagedError: it refers to other files or operators, or has a scale or zero point that is not constant.
    """
    try:
        return instrument(parse_graph(source.read_bytes()), path)
    except ValueError as error:
        raise BundleDamagedError(
            f"{source.name} is not a graph that this program exported: {error}",
            next_step="Build the bundle again: `bundler bundle MODEL --target TARGET`.",
        ) from error


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
    """Return the module's name, followed by the operator if the module has several or is the whole network."""
    found = _NODE_NAME.fullmatch(node.name)
    module, number = found.groups() if found else (node.name, None)
    operator = f" ({producer.op_type})" if producer is not None and (number or not module) else ""
    return f"{module.replace('/', '.')}{operator}".strip()


def sizes_of(instrumented: Path, image: NDArray[np.float32]) -> tuple[int, ...]:
    """Run an image, float32 [1, 3, H, W], and return the number of values of each additional output."""
    return tuple(values.size for values in make_session(instrumented).run(None, {INPUT: image})[1:])
