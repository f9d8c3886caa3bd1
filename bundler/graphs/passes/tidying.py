"""Tidying of an exported file: what the exporter writes oddly is written plainly, and computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import helper, numpy_helper

from bundler.errors import ExportError

__all__ = ["remove_unread", "tidy_graph"]


def tidy_graph(path: Path) -> None:
    """Rewrite a graph that the TorchScript exporter wrote, without changing what it computes.

    The exporter gives a bias quantized for each channel a zero point of shape [1], computed by ConstantOfShape and Cast, where
    ONNX asks for the scale's shape or for none at all. It is zero, which is what none means. It casts uint8 activations to
    uint8. And it writes weights and scales as Constant nodes; as initializers they are what tools show and share.

    Ensures: neither Constant nor ConstantOfShape is left.

    Raises:
        ExportError: one is.
    """
    model = onnx.load(path)
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 3 and _is_computed_zero(node.input[2], producers):
            del node.input[2]
    for node in graph.node:
        if node.op_type == "Constant":
            tensor = helper.get_node_attr_value(node, "value")
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
    _keep(graph.node, [node for node in graph.node if node.op_type != "Constant"])
    _remove_casts_to_the_same_type(model)
    remove_unread(graph)
    left = [node.name for node in graph.node if node.op_type in ("Constant", "ConstantOfShape")]
    if left:
        raise ExportError(
            f"the exported graph {path.name} still computes constants: {', '.join(left[:3])}",
            next_step="Report it with the model's name and `bundler doctor --json`.",
        )
    onnx.save(model, path)


def _is_computed_zero(name: str, producers: dict[str, onnx.NodeProto]) -> bool:
    node = producers.get(name)
    while node is not None and node.op_type == "Cast":
        node = producers.get(node.input[0])
    if node is None or node.op_type != "ConstantOfShape":
        return False
    return not node.attribute or not numpy_helper.to_array(node.attribute[0].t).any()


def _remove_casts_to_the_same_type(model: onnx.ModelProto) -> None:
    """Remove what stands between a Quantize and its Dequantize and changes nothing."""
    typed = onnx.shape_inference.infer_shapes(model).graph.value_info
    types = {value.name: value.type.tensor_type.elem_type for value in typed}
    replaced = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Cast" and types.get(node.input[0]) == helper.get_node_attr_value(node, "to")
    }
    _keep(model.graph.node, [node for node in model.graph.node if node.output[0] not in replaced])
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = replaced.get(name, name)


def remove_unread(graph: onnx.GraphProto) -> None:
    """Remove nodes and initializers that nothing reads, in the subgraphs of control flow as well, until there are none.

    ONNX Runtime warns of each such initializer whenever it loads the file.
    """
    for subgraph in _subgraphs(graph):
        remove_unread(subgraph)
    count = -1
    while count != len(graph.node):
        count = len(graph.node)
        read = _names_read(graph)
        _keep(graph.node, [node for node in graph.node if not read.isdisjoint(node.output)])
    read = _names_read(graph)
    _keep(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in read])
    _keep(graph.sparse_initializer, [tensor for tensor in graph.sparse_initializer if tensor.values.name in read])


def _names_read(graph: onnx.GraphProto) -> set[str]:
    """Return what nodes and outputs read; a subgraph may read what the graph around it computes."""
    names = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    return names.union(*map(_names_read, _subgraphs(graph))) - {""}  # "" is an optional input that is not given


def _subgraphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    single = [attribute.g for attribute in attributes if attribute.type == onnx.AttributeProto.GRAPH]
    return single + [subgraph for attribute in attributes for subgraph in attribute.graphs]


def _keep(items: Any, kept: list[Any]) -> None:
    """Leave these in a repeated field; its own `remove` searches from the start for each."""
    del items[:]
    items.extend(kept)
