"""StripLogitsRoundingPass: a classifier's INT8 logits are not requantized to 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bundler.graphs.passes.unused import RemoveUnusedPass
from bundler.graphs.qdq import constant, dequantized_by, integer_product

__all__ = ["LogitsRounding", "StripLogitsRoundingPass"]


@dataclass(frozen=True, kw_only=True)
class LogitsRounding:
    """How torch rounds its logits: to multiples of `step`, within `lowest` and `highest`."""

    step: float
    lowest: float
    highest: float

    def applied(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits as torch would have rounded them."""
        rounded: NDArray[np.float32] = np.clip(np.rint(logits / self.step) * self.step, self.lowest, self.highest)
        return rounded.astype(np.float32)


class StripLogitsRoundingPass(ir.passes.InPlacePass):
    """Remove the QuantizeLinear and DequantizeLinear behind the last Gemm, so that it gives dequantized int32 accumulators.

    The quantized layers of torch give 8 bits only: its logits are rounded to the calibrated range and clipped there, which is
    two thirds of the quantization noise of a ResNet18 at 64 pixels. ONNX Runtime's QGemm without an output scale gives its
    int32 accumulators times their scale: one multiplication in float32, which every processor rounds alike.

    Requires: the graph's output comes from a DequantizeLinear of a QuantizeLinear.
    Ensures: a Gemm in integers gives the output itself. If there is none before the pair, the pair stays.

    After a call, `rounding` is what the pair did.
    """

    rounding: LogitsRounding | None = None

    def requires(self, model: ir.Model) -> None:
        last = model.graph.outputs[0].producer()
        if last is None or last.op_type != "DequantizeLinear" or last.inputs[0] is None or last.inputs[0].producer() is None:
            source = f"{last.op_type} {last.name!r}" if last is not None else "no node"
            raise ir.passes.PreconditionError(f"its output comes from {source} and not from a DequantizeLinear")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        output = model.graph.outputs[0]
        last = output.producer()
        assert last is not None  # noqa: S101  required
        self.rounding = _rounding(last)
        product = integer_product(last, "Gemm")
        if product is None:
            return ir.passes.PassResult(model, modified=False)
        logits = product.outputs[0]
        logits.name, logits.type, logits.shape = output.name, output.type, output.shape
        model.graph.outputs[0] = logits
        return ir.passes.PassResult(RemoveUnusedPass()(model).model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        last = dequantized_by(model.graph.outputs[0])
        if last is not None and integer_product(last, "Gemm") is not None:
            raise ir.passes.PostconditionError(f"its output is still rounded by {last.name}")


def _rounding(dequantize: ir.Node) -> LogitsRounding:
    step, zero_point = float(constant(dequantize.inputs[1])), constant(dequantize.inputs[2])
    limits = np.iinfo(zero_point.dtype)
    lowest, highest = (limit - int(zero_point) for limit in (limits.min, limits.max))
    return LogitsRounding(step=step, lowest=lowest * step, highest=highest * step)
