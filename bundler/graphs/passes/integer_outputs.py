"""Outputs as the sums they are: the last products of an INT8 network are not rounded to 8 bits once more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from bundler.errors import ExportError
from bundler.graphs.passes.tidying import remove_unread

__all__ = ["LogitsRounding", "release_logits", "release_raw_maps"]


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
    graph = _Graph(model.graph)
    last = graph.producers[output]
    if last.op_type != "DequantizeLinear" or last.input[0] not in graph.producers:
        raise ExportError(
            f"the exported graph {path.name} does not hold: its output comes from {last.op_type} {last.name!r} and not from"
            " a DequantizeLinear",
            next_step="A fault of edge-bundler or of its torch: report it with the model's name and `bundler doctor --json`.",
        )
    rounding = graph.rounding(last)
    product = graph.product_in_integers(last, "Gemm")
    if product is not None:
        product.output[0] = output
        graph.remove(graph.producers[last.input[0]], last)
        remove_unread(model.graph)
        onnx.save(model, path)
    return rounding


def release_raw_maps(path: Path, output: str) -> None:
    """Let the convolutions whose maps a detector decodes give their 32-bit sums times their scales.

    One scale of 8 bits over boxes, objectness and classes costs a YOLOv5n that is INT8 as a whole 2.5 points of mAP50-95
    (issue 4). ONNX Runtime has no QLinearConv without a Quantize behind it, but a ConvInteger: what it gives, with the bias
    added, becomes float32 and is multiplied once, which has one right answer on every processor.

    Requires: scales that nobody changes any more (`bundler.graphs.passes.rounding_ambiguity`): their products become constants.
    Ensures: nothing else changes; maps that are computed in float stay as they are.
    """
    model = onnx.load(path)
    graph = _Graph(model.graph)
    for last in list(graph.decoded(output)):
        product = graph.product_in_integers(last, "Conv")
        if product is not None and graph.is_read_once(last.input[0]):  # or it is a backbone's map, which goes on in integers
            graph.replace_by_sums(product, last)
    remove_unread(model.graph)
    onnx.save(model, path)


class _Graph:
    """The nodes of a QDQ graph by what they write."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.producers = {name: node for node in graph.node for name in node.output}
        self._constants = {tensor.name: tensor for tensor in graph.initializer}

    def constant(self, name: str) -> NDArray[Any]:
        array: NDArray[Any] = numpy_helper.to_array(self._constants[name])
        return array

    def rounding(self, dequantize: onnx.NodeProto) -> LogitsRounding:
        step, zero_point = float(self.constant(dequantize.input[1])), self.constant(dequantize.input[2])
        limits = np.iinfo(zero_point.dtype)
        lowest, highest = (limit - int(zero_point) for limit in (limits.min, limits.max))
        return LogitsRounding(step=step, lowest=lowest * step, highest=highest * step)

    def product_in_integers(self, dequantize: onnx.NodeProto, op_type: str) -> onnx.NodeProto | None:
        """Return the operator of that type in front of a Quantize and this Dequantize, where it computes in integers."""
        quantize = self.producers.get(dequantize.input[0])
        product = self.producers.get(quantize.input[0]) if quantize is not None else None
        operands = [self.producers.get(name) for name in product.input[:2]] if product is not None else []
        in_integers = all(operand is not None and operand.op_type == "DequantizeLinear" for operand in operands)
        return product if product is not None and product.op_type == op_type and in_integers else None

    def is_read_once(self, name: str) -> bool:
        return sum(name in node.input for node in self.graph.node) == 1

    def decoded(self, output: str) -> Iterator[onnx.NodeProto]:
        """Find the Dequantizes from which an output is computed in float."""
        seen, names = set[str](), [output]
        while names:
            name = names.pop()
            node = self.producers.get(name)
            if node is None or name in seen:
                continue
            seen.add(name)
            if node.op_type == "DequantizeLinear":
                yield node
            else:
                names += node.input

    def replace_by_sums(self, product: onnx.NodeProto, dequantize: onnx.NodeProto) -> None:
        """Write a convolution of dequantized operands, up to this Dequantize behind it, with what computes its sums."""
        inputs, weight, bias = (self.producers[name] for name in product.input)
        channels = (1, -1, 1, 1)
        scale = np.float32(self.constant(inputs.input[1])) * self.constant(weight.input[1]).astype(np.float32)
        name, position = product.name, list(self.graph.node).index(product)
        convolution = helper.make_node(
            "ConvInteger", [inputs.input[0], weight.input[0], inputs.input[2]], [f"{name}_products"], name=name
        )
        convolution.attribute.extend(product.attribute)
        nodes = (
            convolution,
            helper.make_node("Add", [f"{name}_products", f"{name}_bias"], [f"{name}_sums"], name=f"{name}/Add"),
            helper.make_node("Cast", [f"{name}_sums"], [f"{name}_cast"], name=f"{name}/Cast", to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [dequantize.output[0]], name=f"{name}/Mul"),
        )
        for offset, node in enumerate(nodes):
            self.graph.node.insert(position + offset, node)
        self.graph.initializer.append(numpy_helper.from_array(self.constant(bias.input[0]).reshape(channels), f"{name}_bias"))
        self.graph.initializer.append(numpy_helper.from_array(scale.reshape(channels), f"{name}_scale"))
        self.remove(product, self.producers[dequantize.input[0]], dequantize)

    def remove(self, *nodes: onnx.NodeProto) -> None:
        for node in nodes:
            self.graph.node.remove(node)
