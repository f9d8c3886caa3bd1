"""ONNX files of exported graphs, read into an onnx-ir model and written from one; no other module does either."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

__all__ = ["load_graph", "to_proto"]


def load_graph(path: Path) -> ir.Model:
    """Read a file that torch or ONNX Runtime has just written; files of others go through `foreign_graph.parse_graph`."""
    return ir.from_proto(onnx.load(path))


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Return what is written to the file: the graph as the exporter would have written it.

    onnx-ir adds a `value_info` for each initializer and for each type that was inferred, half as many entries as there are
    nodes; readers infer them, and the exporter leaves them out.
    """
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    for entry in proto.opset_import:
        if not entry.domain:  # ONNX's own, for which the exporter writes no name rather than an empty one
            entry.ClearField("domain")
    return proto
