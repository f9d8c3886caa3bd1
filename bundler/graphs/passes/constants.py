"""ConstantsToInitializersPass: weights and scales are initializers, which tools show and share."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

__all__ = ["ConstantsToInitializersPass"]

_LIFT = LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)


class ConstantsToInitializersPass(ir.passes.InPlacePass):
    """Turn every Constant node, of which the TorchScript exporter makes one for each weight, into an initializer.

    Ensures: neither Constant nor ConstantOfShape is left.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return _LIFT(model)

    def ensures(self, model: ir.Model) -> None:
        left = [str(node.name) for node in model.graph.all_nodes() if node.op_type in ("Constant", "ConstantOfShape")]
        if left:
            raise ir.passes.PostconditionError(f"it still computes constants: {', '.join(left[:3])}")
