"""Nudging of scales, until no processor can round an INT8 operator's answer differently from another."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from bundler.errors import ExportError
from bundler.graphs.passes.tidying import remove_unread
from bundler.graphs.rounding_models import Affine, UInt8, additions, ambiguous, averages, functions, means, multiplications

__all__ = ["TieProof", "settle_ties"]

# Half of all scales are free of ties (facts of issue 4). In steps of 2 ppm, 500 candidates to each side end at 0.1 %,
# which is 0.01 dB; a few are enough.
STEP = 2e-6
STEPS = 500

# Between a Dequantize and a Quantize these only pass integers on, which needs one scale on both sides.
_PASSING = frozenset({"Flatten", "Identity", "MaxPool", "Relu", "Reshape", "Resize", "Squeeze", "Transpose", "Unsqueeze"})
# These select among integers, without a Dequantize.
_SELECTING = frozenset({"Clip", "Reshape"})


@dataclass(frozen=True, kw_only=True)
class TieProof:
    """One operator: for how many inputs its answer depended on the processor, and what its scale was multiplied with."""

    operator: str
    op_type: str
    inputs: int
    ambiguous_before: int
    nudge: float


def settle_ties(path: Path) -> tuple[TieProof, ...]:
    """Rewrite an INT8 graph so that every integer operator answers the same on every processor.

    Each operator that computes in float32 (or, on arm64, in fixed point) between its Dequantize and its Quantize is tried with
    all its inputs, 65,536 for two operands, in every way of rounding; its result's scale is changed by as many steps of 2 ppm
    as it takes (issue 4).

    Requires: a graph of Quantize and Dequantize nodes, whose scales and zero points are scalars in initializers.
    Ensures: no operator's answer is ambiguous for any input; the returned proofs name each operator that was tried.

    Raises:
        ExportError: no scale within 0.1 % does; the operator is named.
    """
    model = onnx.load(path)
    graph = _Graph(onnx.shape_inference.infer_shapes(model).graph, model.graph)
    proofs = tuple(_settle(graph, quantize) for quantize in graph.quantizers() if graph.is_tied(quantize))
    remove_unread(model.graph)  # scales that were shared, and of which now each reader has its own
    onnx.save(model, path)
    return proofs


def _settle(graph: _Graph, quantize: onnx.NodeProto) -> TieProof:
    operator = graph.computed_by(quantize)
    answers = graph.answers(quantize, 1.0)
    before = ambiguous(answers)
    nudge = 1.0
    if before:
        candidates = (1 + sign * step * STEP for step in range(1, STEPS + 1) for sign in (1, -1))
        found = next((nudge for nudge in candidates if ambiguous(graph.answers(quantize, nudge)) == 0), None)
        if found is None:
            raise ExportError(
                f"no scale of {operator.name} ({operator.op_type}) rounds alike on every processor",
                next_step="Report it with the model's name and `bundler doctor --json`.",
            )
        nudge = found
        graph.scale(quantize, nudge)
    return TieProof(
        operator=operator.name, op_type=operator.op_type, inputs=answers[0].size, ambiguous_before=before, nudge=nudge
    )


class _Graph:
    """The nodes of a QDQ graph by what they read and write."""

    def __init__(self, typed: onnx.GraphProto, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.shapes = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in typed.value_info}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def quantizers(self) -> Iterator[onnx.NodeProto]:
        return (node for node in list(self.graph.node) if node.op_type == "QuantizeLinear")

    def computed_by(self, quantize: onnx.NodeProto) -> onnx.NodeProto:
        """Return the operator behind a Quantize; a Relu between them is what the saturation at a zero point of 0 does."""
        node = self.producers.get(quantize.input[0], quantize)
        return self.computed_by(node) if node.op_type == "Relu" and self._zero_point(quantize) == 0 else node

    def is_tied(self, quantize: onnx.NodeProto) -> bool:
        """Tell whether a Quantize's operator can be ambiguous: it runs on integers, and not as a QLinearConv or QGemm."""
        operator = self.computed_by(quantize)
        return operator.op_type in _ANSWERS and all(self._source(name) is not None for name in operator.input)

    def answers(self, quantize: onnx.NodeProto, nudge: float) -> list[UInt8]:
        operator = self.computed_by(quantize)
        result = self.affine(quantize)
        nudged = Affine(scale=float(np.float32(result.scale * nudge)), zero_point=result.zero_point)
        return _ANSWERS[operator.op_type](self, operator, nudged)

    def affine(self, node: onnx.NodeProto) -> Affine:
        """Return a Quantize's or Dequantize's scale and zero point."""
        return Affine(scale=float(self.constant(node.input[1])), zero_point=self._zero_point(node))

    def constant(self, name: str) -> NDArray[np.generic]:
        array: NDArray[np.generic] = numpy_helper.to_array(self.constants[name])
        return array

    def operand(self, name: str) -> Affine:
        """Return what the integers stand for that an operator reads."""
        source = self._source(name)
        assert source is not None  # noqa: S101  is_tied said so
        return self.affine(source)

    def constant_integer(self, name: str) -> int | None:
        """Return the one integer of a constant operand."""
        source = self._source(name)
        if source is None or source.input[0] not in self.constants:
            return None
        return int(self.constant(source.input[0]))

    def _source(self, name: str) -> onnx.NodeProto | None:
        node = self.producers.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def _zero_point(self, node: onnx.NodeProto) -> int:
        return int(self.constant(node.input[2])) if len(node.input) > 2 else 0

    def scale(self, node: onnx.NodeProto, factor: float) -> None:
        """Multiply the scale of a Quantize, and of all that reads its integers, with a factor."""
        self._multiply(node, 1, factor)
        self._scale_readers(node.output[0], factor)

    def _scale_readers(self, integers: str, factor: float) -> None:
        for reader in self.readers.get(integers, []):
            if reader.op_type == "DequantizeLinear":
                self._multiply(reader, 1, factor)
                for user in self.readers[reader.output[0]]:
                    self._scale_user(user, reader.output[0], factor)
            elif reader.op_type in _SELECTING and reader.input[0] == integers:
                self._scale_readers(reader.output[0], factor)

    def _scale_user(self, user: onnx.NodeProto, values: str, factor: float) -> None:
        if user.op_type in _PASSING:
            for quantize in self.readers.get(user.output[0], []):
                if quantize.op_type == "QuantizeLinear":
                    self.scale(quantize, factor)
                else:
                    self._scale_user(quantize, user.output[0], factor)
        elif user.op_type in ("Conv", "Gemm") and user.input[0] == values and len(user.input) > 2:
            bias = self._source(user.input[2])  # int32, whose scale is that of the products
            if bias is not None:
                self._multiply(bias, 1, factor)

    def _multiply(self, node: onnx.NodeProto, index: int, factor: float) -> None:
        """Give a node its own constant, as others may share the one it reads."""
        name = f"{node.output[0]}_scale"
        array = (self.constant(node.input[index]).astype(np.float64) * factor).astype(np.float32)
        tensor = numpy_helper.from_array(array, name)
        if name in self.constants:
            self.constants[name].CopyFrom(tensor)
        else:
            self.graph.initializer.append(tensor)
            self.constants[name] = self.graph.initializer[-1]
        node.input[index] = name


def _of_addition(graph: _Graph, node: onnx.NodeProto, result: Affine) -> list[UInt8]:
    first, second = (graph.operand(name) for name in node.input)
    if graph.constant_integer(node.input[0]) is not None:
        return additions(second, first, result, only_b=graph.constant_integer(node.input[0]))
    return additions(first, second, result, only_b=graph.constant_integer(node.input[1]))


def _of_multiplication(graph: _Graph, node: onnx.NodeProto, result: Affine) -> list[UInt8]:
    first, second = (graph.operand(name) for name in node.input)
    return multiplications(first, second, result)


def _of_sigmoid(graph: _Graph, node: onnx.NodeProto, result: Affine) -> list[UInt8]:
    return functions(graph.operand(node.input[0]), result, lambda x: 1 / (1 + np.exp(-x)))


def _of_leaky_relu(graph: _Graph, node: onnx.NodeProto, result: Affine) -> list[UInt8]:
    alpha = next((float(helper.get_attribute_value(item)) for item in node.attribute if item.name == "alpha"), 0.01)
    return functions(graph.operand(node.input[0]), result, lambda x: np.where(x < 0, x * float(np.float32(alpha)), x))


def _of_concatenation(graph: _Graph, node: onnx.NodeProto, result: Affine) -> list[UInt8]:
    parts = [functions(graph.operand(name), result, lambda x: x) for name in node.input if graph.operand(name) != result]
    return [np.concatenate(side) for side in zip(*parts, strict=True)] or [np.zeros(0, np.uint8)]


def _of_global_average(graph: _Graph, node: onnx.NodeProto, result: Affine) -> list[UInt8]:
    return averages(graph.operand(node.input[0]), result, count=math.prod(graph.shapes[node.input[0]][2:]))


def _of_average(graph: _Graph, node: onnx.NodeProto, result: Affine) -> list[UInt8]:
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return means(graph.operand(node.input[0]), result, count=math.prod(attributes["kernel_shape"]))


_ANSWERS = {
    "AveragePool": _of_average,
    "GlobalAveragePool": _of_global_average,
    "Add": _of_addition,
    "Mul": _of_multiplication,
    "Sigmoid": _of_sigmoid,
    "LeakyRelu": _of_leaky_relu,
    "Concat": _of_concatenation,
}
