"""PerturbScalesPass: output scales at which every processor rounds an INT8 operator's results alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bundler.errors import ExportError
from bundler.graphs.qdq import affine, constant, dequantized_by, zero_point
from bundler.graphs.rounding_models import Affine, UInt8, additions, ambiguous, averages, functions, means, multiplications

__all__ = ["PerturbScalesPass", "ScalePerturbation"]

# Half of all scales need no perturbation. In steps of 2 ppm, 500 candidates to each side end at 0.1 %, which is 0.01 dB; a few
# are enough.
STEP = 2e-6
STEPS = 500

# Between a DequantizeLinear and a QuantizeLinear, ONNX Runtime runs these on the integers; both need the same scale.
_PASSING = frozenset({"Flatten", "Identity", "MaxPool", "Relu", "Reshape", "Resize", "Squeeze", "Transpose", "Unsqueeze"})
# The exporter applies these to integers, without a DequantizeLinear.
_SELECTING = frozenset({"Clip", "Reshape"})


@dataclass(frozen=True, kw_only=True)
class ScalePerturbation:
    """One operator: for how many of its inputs the result depended on the processor, and the factor of its output scale.

    `inputs` is the number of inputs that were computed (65,536 for two operands), `factor` the factor, 1 ± 0.001; 1 if no input
    was ambiguous.
    """

    operator: str
    op_type: str
    inputs: int
    ambiguous_before: int
    factor: float


class PerturbScalesPass(ir.passes.InPlacePass):
    """Change scales so that no integer operator has an input for which two processors round to different results.

    Operators that compute in float32 (or, on arm64, in fixed point) between their DequantizeLinear and their QuantizeLinear are
    computed for all their inputs, 65,536 for two operands, in every way in which ONNX Runtime's kernels round
    (`bundler.graphs.rounding_models`). The output scale is changed in steps of 2 ppm until all ways agree, together with what
    else is expressed in it: the DequantizeLinear nodes that read the result, and the int32 biases of convolutions behind them.

    Requires: each QuantizeLinear and DequantizeLinear of such an operator has a constant scale and zero point, one for the
    whole tensor; the height and width in front of a GlobalAveragePool are known (`InferShapesPass`).
    Ensures: the ways of rounding agree for all inputs of every such operator.

    After a call, `perturbations` names each operator that was computed, in the order of the graph.

    Raises:
        ExportError: no scale within 0.1 % is unambiguous; the operator is named.
    """

    perturbations: tuple[ScalePerturbation, ...] = ()

    def requires(self, model: ir.Model) -> None:
        for quantize in _computing_quantizers(model):
            operator = _computed_by(quantize)
            for node in (quantize, *(dequantized_by(value) for value in operator.inputs)):
                _require_one_scale(node)
            if operator.op_type == "GlobalAveragePool" and not _plane(operator):
                raise ir.passes.PreconditionError(f"the height and width of the input of {operator.name} are not known")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self.perturbations = tuple(_unambiguous(model.graph, quantize) for quantize in list(_computing_quantizers(model)))
        return ir.passes.PassResult(model, modified=any(found.ambiguous_before for found in self.perturbations))

    def ensures(self, model: ir.Model) -> None:
        for quantize in _computing_quantizers(model):
            if count := ambiguous(_results(quantize, 1.0)):
                name = _computed_by(quantize).name
                raise ir.passes.PostconditionError(f"{name} still rounds {count} of its inputs as the processor does")


def _unambiguous(graph: ir.Graph, quantize: ir.Node) -> ScalePerturbation:
    operator = _computed_by(quantize)
    results = _results(quantize, 1.0)
    before = ambiguous(results)
    factor = 1.0
    if before:
        candidates = (1 + sign * step * STEP for step in range(1, STEPS + 1) for sign in (1, -1))
        found = next((factor for factor in candidates if ambiguous(_results(quantize, factor)) == 0), None)
        if found is None:
            raise ExportError(
                f"no output scale within {STEP * STEPS:.1%} of the calibrated one makes all processors round {operator.name} "
                f"({operator.op_type}) alike",
                next_step="Calibrate with other images (--calibration DIR), from which other scales follow.",
            )
        factor = found
        _scale(graph, quantize, factor)
    return ScalePerturbation(
        operator=str(operator.name),
        op_type=operator.op_type,
        inputs=results[0].size,
        ambiguous_before=before,
        factor=factor,
    )


def _computing_quantizers(model: ir.Model) -> Iterator[ir.Node]:
    """Yield each QuantizeLinear whose operator is computed on integers, and not as a QLinearConv or QGemm, which is exact."""
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            operator = _computed_by(node)
            if operator.op_type in _RESULTS and all(dequantized_by(value) is not None for value in operator.inputs):
                yield node


def _computed_by(quantize: ir.Node) -> ir.Node:
    """Return the operator in front of a QuantizeLinear.

    A Relu between them does what the saturation at a zero point of 0 does, and is skipped.
    """
    node = quantize
    while True:
        producer = node.inputs[0].producer() if node.inputs[0] is not None else None
        if producer is None:
            return quantize
        if producer.op_type != "Relu" or zero_point(quantize) != 0:
            return producer
        node = producer


def _results(quantize: ir.Node, factor: float) -> list[UInt8]:
    """Return what the operator gives for all its inputs, in each way of rounding, with its output scale times a factor."""
    operator = _computed_by(quantize)
    result = affine(quantize)
    scaled = Affine(scale=float(np.float32(result.scale * factor)), zero_point=result.zero_point)
    return _RESULTS[operator.op_type](operator, scaled)


def _require_one_scale(node: ir.Node | None) -> None:
    try:
        if node is not None and constant(node.inputs[1]).ndim == 0:
            zero_point(node)
            return
    except (ValueError, TypeError) as error:
        raise ir.passes.PreconditionError(f"{node.name if node else node}: {error}") from error
    raise ir.passes.PreconditionError(f"{node.name if node else node} has more than one scale")


def _scale(graph: ir.Graph, quantize: ir.Node, factor: float) -> None:
    """Multiply the scale of a QuantizeLinear, and of all that reads its integers, by a factor."""
    _multiply(graph, quantize, factor)
    _scale_readers(graph, quantize.outputs[0], factor)


def _scale_readers(graph: ir.Graph, integers: ir.Value, factor: float) -> None:
    for reader, index in integers.uses():
        if reader.op_type == "DequantizeLinear":
            _multiply(graph, reader, factor)
            for user, operand in reader.outputs[0].uses():
                _scale_user(graph, user, operand, factor)
        elif reader.op_type in _SELECTING and index == 0:
            _scale_readers(graph, reader.outputs[0], factor)


def _scale_user(graph: ir.Graph, user: ir.Node, operand: int, factor: float) -> None:
    if user.op_type in _PASSING:
        for reader, index in user.outputs[0].uses():
            if reader.op_type == "QuantizeLinear":
                _scale(graph, reader, factor)
            else:
                _scale_user(graph, reader, index, factor)
    elif user.op_type in ("Conv", "Gemm") and operand == 0 and len(user.inputs) > 2:
        bias = dequantized_by(user.inputs[2])  # int32, whose scale is that of the products
        if bias is not None:
            _multiply(graph, bias, factor)


def _multiply(graph: ir.Graph, node: ir.Node, factor: float) -> None:
    """Give a node its own scale, as others may share the one it reads."""
    name = f"{node.outputs[0].name}_scale"
    array = (constant(node.inputs[1]).astype(np.float64) * factor).astype(np.float32)
    tensor = ir.tensor(array, name=name)
    if name in graph.initializers:
        graph.initializers[name].const_value = tensor
    else:
        own = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(own)
    node.replace_input_with(1, graph.initializers[name])


def _operand(value: ir.Value | None) -> Affine:
    """Return the scale and zero point of an operand."""
    source = dequantized_by(value)
    assert source is not None  # noqa: S101  of `_computing_quantizers`
    return affine(source)


def _constant_integer(value: ir.Value | None) -> int | None:
    """Return the one integer of a constant operand."""
    source = dequantized_by(value)
    integers = source.inputs[0] if source is not None else None
    return None if integers is None or integers.const_value is None else int(constant(integers))


def _plane(operator: ir.Node) -> int:
    """Return the number of positions of a map [N, C, H, W] that an operator reads, 0 if it is not known."""
    shape = operator.inputs[0].shape if operator.inputs[0] is not None else None
    if shape is None:
        return 0
    sides = [side for side in shape[2:] if isinstance(side, int)]
    return math.prod(sides) if len(sides) == len(shape) - 2 else 0


def _of_addition(node: ir.Node, result: Affine) -> list[UInt8]:
    first, second = (_operand(value) for value in node.inputs)
    if _constant_integer(node.inputs[0]) is not None:
        return additions(second, first, result, only_b=_constant_integer(node.inputs[0]))
    return additions(first, second, result, only_b=_constant_integer(node.inputs[1]))


def _of_multiplication(node: ir.Node, result: Affine) -> list[UInt8]:
    first, second = (_operand(value) for value in node.inputs)
    return multiplications(first, second, result)


def _of_sigmoid(node: ir.Node, result: Affine) -> list[UInt8]:
    return functions(_operand(node.inputs[0]), result, lambda x: 1 / (1 + np.exp(-x)))


def _of_leaky_relu(node: ir.Node, result: Affine) -> list[UInt8]:
    alpha = node.attributes.get_float("alpha", 0.01)
    return functions(_operand(node.inputs[0]), result, lambda x: np.where(x < 0, x * float(np.float32(alpha)), x))


def _of_concatenation(node: ir.Node, result: Affine) -> list[UInt8]:
    parts = [functions(_operand(value), result, lambda x: x) for value in node.inputs if _operand(value) != result]
    return [np.concatenate(side) for side in zip(*parts, strict=True)] or [np.zeros(0, np.uint8)]


def _of_global_average(node: ir.Node, result: Affine) -> list[UInt8]:
    return averages(_operand(node.inputs[0]), result, count=_plane(node))


def _of_average(node: ir.Node, result: Affine) -> list[UInt8]:
    return means(_operand(node.inputs[0]), result, count=math.prod(node.attributes.get_ints("kernel_shape", ())))


_RESULTS: Mapping[str, Callable[[ir.Node, Affine], list[UInt8]]] = {
    "AveragePool": _of_average,
    "GlobalAveragePool": _of_global_average,
    "Add": _of_addition,
    "Mul": _of_multiplication,
    "Sigmoid": _of_sigmoid,
    "LeakyRelu": _of_leaky_relu,
    "Concat": _of_concatenation,
}
