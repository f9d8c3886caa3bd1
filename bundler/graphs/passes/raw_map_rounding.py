"""StripRawMapRoundingPass: the raw maps that a whole-INT8 detector decodes are not requantized to 8 bits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bundler.graphs.passes.unused import RemoveUnusedPass
from bundler.graphs.qdq import constant, dequantized_by, integer_product

__all__ = ["StripRawMapRoundingPass"]

_CHANNELS = (1, -1, 1, 1)  # of maps [N, C, H, W]


class StripRawMapRoundingPass(ir.passes.InPlacePass):
    """Replace the convolutions whose maps a detector decodes by ConvInteger, so that they give dequantized int32 accumulators.

    One 8-bit scale over boxes, objectness and classes costs a YOLOv5n that is INT8 as a whole 2.5 points of mAP50-95. ONNX
    Runtime has no QLinearConv without an output scale, but a ConvInteger: its accumulators, with the bias added, become
    float32 and are multiplied once, which every processor rounds alike.

    Requires: an output [batch, …] that is computed from DequantizeLinear nodes. It comes after `PerturbScalesPass`, as the
    products of scales become constants.
    Ensures: no convolution in integers, whose map only the decoding reads, is rounded to 8 bits. Maps in float stay.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = list(_rounded_maps(model))
        for product, dequantize in found:
            _replace_by_sums(model.graph, product, dequantize)
        return ir.passes.PassResult(RemoveUnusedPass()(model).model, modified=bool(found))

    def ensures(self, model: ir.Model) -> None:
        for product, _ in _rounded_maps(model):
            raise ir.passes.PostconditionError(f"the map of {product.name} is still rounded")


def _rounded_maps(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Node]]:
    """Yield convolutions in integers with the DequantizeLinear behind them, from which the output is computed in float."""
    for last in _decoded(model.graph.outputs[0]):
        product = integer_product(last, "Conv")
        # A backbone's map is read twice: it also goes on in integers.
        if product is not None and last.inputs[0] is not None and len(last.inputs[0].consumers()) == 1:
            yield product, last


def _decoded(output: ir.Value) -> Iterator[ir.Node]:
    """Yield the DequantizeLinear nodes from which an output is computed in float."""
    seen, values = set[ir.Value](), [output]
    while values:
        value = values.pop()
        node = value.producer()
        if node is None or value in seen:
            continue
        seen.add(value)
        if node.op_type == "DequantizeLinear":
            yield node
        elif node.op_type != "QuantizeLinear":  # behind it are the layers before, of which the output is not computed in float
            values += [item for item in node.inputs if item is not None]


def _replace_by_sums(graph: ir.Graph, product: ir.Node, dequantize: ir.Node) -> None:
    """Write a convolution of dequantized operands, up to the DequantizeLinear behind it, as what computes its accumulators."""
    inputs, weight, bias = (dequantized_by(value) for value in product.inputs)
    assert inputs is not None and weight is not None and bias is not None  # noqa: S101, PT018  checked by integer_product
    name, result = product.name, dequantize.outputs[0]
    scale = np.float32(constant(inputs.inputs[1])) * constant(weight.inputs[1]).astype(np.float32)
    sums = ir.node(
        "ConvInteger",
        [inputs.inputs[0], weight.inputs[0], inputs.inputs[2]],
        attributes=product.attributes,
        outputs=[ir.Value(name=f"{name}_products")],
        name=name,
    )
    biased = ir.node(
        "Add",
        [sums.outputs[0], _initializer(graph, f"{name}_bias", constant(bias.inputs[0]).reshape(_CHANNELS))],
        outputs=[ir.Value(name=f"{name}_sums")],
        name=f"{name}/Add",
    )
    cast = ir.node(
        "Cast",
        [biased.outputs[0]],
        attributes={"to": ir.DataType.FLOAT},
        outputs=[ir.Value(name=f"{name}_cast")],
        name=f"{name}/Cast",
    )
    scaled = ir.node(
        "Mul",
        [cast.outputs[0], _initializer(graph, f"{name}_scale", scale.reshape(_CHANNELS))],
        outputs=[ir.Value(name=result.name, type=result.type, shape=result.shape)],
        name=f"{name}/Mul",
    )
    graph.insert_before(product, [sums, biased, cast, scaled])
    result.replace_all_uses_with(scaled.outputs[0], replace_graph_outputs=True)
    quantize = dequantize.inputs[0].producer() if dequantize.inputs[0] is not None else None
    assert quantize is not None  # noqa: S101  it is between the two
    graph.remove([dequantize, quantize, product], safe=True)


def _initializer(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
