"""Parsing of ONNX files of unknown origin: memory is bounded, and files that refer to other files or operators are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
from google.protobuf.message import DecodeError

__all__ = ["parse_graph"]

MOST_FIELDS = 1_000_000  # of all messages; a quantized EfficientNet-B7 has 100,000
_DEPTH = 40  # of messages in each other
_DOMAINS = frozenset({"", "ai.onnx"})  # of operators; the export writes no others
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def parse_graph(content: bytes) -> onnx.ModelProto:
    """Return the model in `content`; its size in memory is a bounded multiple of the file's.

    Raises:
        ValueError: it is not an ONNX model, has more than a million fields, stores tensors in other files, defines functions,
            or uses operators outside of ONNX's own domain.
    """
    _bound_fields(content)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ValueError("it is not an ONNX model") from error
    domains = {entry.domain for entry in model.opset_import} | {node.domain for node in _nodes(model.graph)}
    if domains - _DOMAINS:
        raise ValueError(f"it uses operators of {', '.join(map(repr, sorted(domains - _DOMAINS)[:5]))}")
    if model.functions:
        raise ValueError(f"it defines {len(model.functions)} functions")
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise ValueError(f"the tensor {tensor.name[:100]!r} is stored in another file")
    return model


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    waiting = [graph]
    while waiting:
        one = waiting.pop()
        yield one
        for node in one.node:
            for attribute in node.attribute:
                waiting += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    return (node for one in _graphs(graph) for node in one.node)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for one in _graphs(graph):
        yield from one.initializer
        sparse = [*one.sparse_initializer]
        for node in one.node:
            for attribute in node.attribute:
                yield from attribute.tensors
                yield attribute.t
                sparse += [*attribute.sparse_tensors, attribute.sparse_tensor]
        for tensor in sparse:
            yield from (tensor.values, tensor.indices)


def _bound_fields(content: bytes) -> None:
    """Count the fields of all messages before parsing: two bytes of the file can become an object of hundreds of bytes.

    Raises:
        ValueError: there are too many, or the encoding is broken (https://protobuf.dev/programming-guides/encoding/).
    """
    open_messages: list[tuple[int, Any]] = [(len(content), onnx.ModelProto.DESCRIPTOR)]  # where each ends, from the outermost
    position = 0
    for _ in range(MOST_FIELDS):
        while open_messages and position == open_messages[-1][0]:
            open_messages.pop()
        if not open_messages:
            return
        end, descriptor = open_messages[-1]
        key, position = _varint(content, position, end)
        kind = key & 7
        if kind == _VARINT:
            _, position = _varint(content, position, end)
        elif kind == _BYTES:
            size, position = _varint(content, position, end)
            field = descriptor.fields_by_number.get(key >> 3)
            if field is not None and field.message_type is not None:
                open_messages.append((min(position + size, end + 1), field.message_type))
            else:
                position += size
        elif kind in (_FIXED32, _FIXED64):
            position += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("it is not an ONNX model")
        if position > end or open_messages[-1][0] > end:
            raise ValueError("it is not an ONNX model, or cut off")
        if len(open_messages) > _DEPTH:
            raise ValueError(f"its messages are nested more than {_DEPTH} deep")
    raise ValueError(f"it has more than {MOST_FIELDS:,} fields")


def _varint(content: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("it is not an ONNX model, or cut off")
