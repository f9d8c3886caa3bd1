"""Logits as the sums they are: the last matrix product of an INT8 classifier is not rounded to 8 bits once more."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from bundler.errors import ExportError

__all__ = ["LogitsRounding", "release_logits"]


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


def release_logits(path: Path, output: str) -> LogitsRounding:
    """Take the Quantize and Dequantize behind the last matrix product of an INT8 graph away, and return what they did.

    Torch's INT8 layers can only give 8 bits, so that its logits are rounded to the range of the calibration's and cut off
    there: two thirds of all the noise of a ResNet18 at 64 pixels (issue 4). ONNX Runtime's QGemm gives its 32-bit sums times
    their scale where no Quantize follows: one multiplication in float32, which has one right answer on every processor.

    Requires: a graph whose `output` comes from a Dequantize. Where no matrix product of integers is behind it, it stays.
    Ensures: nothing else changes.

    Raises:
        ExportError: the output comes from something else.
    """
    model = onnx.load(path)
    producers = {name: node for node in model.graph.node for name in node.output}
    last = producers[output]
    quantize = producers.get(last.input[0])
    if last.op_type != "DequantizeLinear" or quantize is None:
        raise ExportError(
            f"the exported graph {path.name} does not hold: its output comes from {last.op_type} {last.name!r} and not from"
            " a DequantizeLinear",
            next_step="A fault of edge-bundler or of its torch: report it with the model's name and `bundler doctor --json`.",
        )
    rounding = _rounding(model.graph, last)
    product = producers.get(quantize.input[0])
    operands = [producers.get(name) for name in product.input[:2]] if product is not None else []
    in_integers = [operand is not None and operand.op_type == "DequantizeLinear" for operand in operands]
    if product is not None and product.op_type == "Gemm" and all(in_integers):
        product.output[0] = output
        model.graph.node.remove(last)
        model.graph.node.remove(quantize)
        onnx.save(model, path)
    return rounding


def _rounding(graph: onnx.GraphProto, dequantize: onnx.NodeProto) -> LogitsRounding:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    step, zero_point = float(constants[dequantize.input[1]]), int(constants[dequantize.input[2]])
    limits = np.iinfo(constants[dequantize.input[2]].dtype)
    return LogitsRounding(step=step, lowest=(limits.min - zero_point) * step, highest=(limits.max - zero_point) * step)
