"""RemoveUnusedPass: no node and no initializer that nothing reads."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

__all__ = ["RemoveUnusedPass"]


class RemoveUnusedPass(ir.passes.InPlacePass):
    """Remove nodes and initializers that nothing reads, in the subgraphs of control flow as well.

    ONNX Runtime prints a warning for each such initializer whenever it loads the file. onnx-ir's own pass leaves those of
    subgraphs.

    Ensures: none is left.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = RemoveUnusedNodesPass()(model).modified
        for graph in model.graphs():
            for value in _unused_initializers(graph):
                del graph.initializers[str(value.name)]
                modified = True
        return ir.passes.PassResult(model, modified=modified)

    def ensures(self, model: ir.Model) -> None:
        for graph in model.graphs():
            left = [value.name for value in _unused_initializers(graph)]
            left += [node.name for node in graph if not any(_is_read(value) for value in node.outputs)]
            if left:
                raise ir.passes.PostconditionError(f"nothing reads {left[0]}")


def _unused_initializers(graph: ir.Graph) -> list[ir.Value]:
    return [value for value in graph.initializers.values() if not _is_read(value) and not value.is_graph_input()]


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()
