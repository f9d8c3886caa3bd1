"""PerturbScalesPass on five families of networks: no operator keeps an ambiguous input, and little accuracy is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from bundler.device.numerics import sqnr_db
from bundler.errors import ExportError
from bundler.graphs.exported_graph import ExportedGraph, save_graph
from bundler.graphs.exporter import export_with_torch, simplify
from bundler.graphs.host_runs import run_reference
from bundler.graphs.passes.inferred_shapes import InferShapesPass
from bundler.graphs.passes.rounding_ambiguity import PerturbScalesPass, ScalePerturbation
from bundler.graphs.passes.unused import RemoveUnusedPass
from bundler.graphs.serialization import load_graph
from bundler.models.registry import find_model, load_parser
from bundler.models.specs import Task
from bundler.quantization import calibrate, convert, quantized_engine
from bundler.targets import TargetProfile

# The operators that ONNX Runtime does not compute as exact sums of products, and the number of their inputs; it depends on the
# size of the map or the number of operands where it is None.
INPUTS = {
    "Add": 65_536,
    "Mul": 65_536,
    "Sigmoid": 256,
    "LeakyRelu": 256,
    "GlobalAveragePool": None,
    "AveragePool": None,
    "Concat": None,
}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The same network as torch quantized it, and with perturbed scales."""

    before: ExportedGraph
    after: ExportedGraph
    perturbations: Mapping[str, ScalePerturbation]


@pytest.fixture(scope="module", params=["resnet18", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "yolov5n"])
def pair(
    request: pytest.FixtureRequest,
    target: TargetProfile,
    weights_of: Callable[[str], Mapping[str, Tensor]],
    calibration: Tensor,
    golden: Tensor,
    tmp_path_factory: pytest.TempPathFactory,
) -> Pair:
    spec = find_model(request.param)[1]
    parser, folder = load_parser(spec), tmp_path_factory.mktemp("perturbed")
    scope = {"int8_scope": "whole"} if spec.task == "detection" else {}
    kwargs = {"weights": weights_of(request.param), "num_classes": 10, **scope}
    prepared = parser(**kwargs, quantize=True, target=target.quantization)
    calibrate(prepared, [calibration])
    converted = convert(prepared, target.quantization)
    with quantized_engine(target.quantization.engine):
        model = export_with_torch(converted, golden[:2], folder / "a.onnx", opset=13, task=spec.task, quantized=True)
    simplify(model)
    before = save(model.clone(), folder / "before.onnx", spec.task)
    perturb = PerturbScalesPass()
    after = save(perturb(model).model, folder / "after.onnx", spec.task)
    return Pair(before=before, after=after, perturbations={found.operator: found for found in perturb.perturbations})


def save(model: ir.Model, path: Path, task: Task) -> ExportedGraph:
    RemoveUnusedPass()(model)
    return save_graph(model, path, opset=13, task=task, quantized=True)


def model_of(graph: ExportedGraph) -> ir.Model:
    assert graph.model is not None
    return graph.model


def computed_in_integers(model: ir.Model) -> list[ir.Node]:
    """Return the operators whose operands are all dequantized and whose result is quantized, found without the pass's own code.

    ONNX Runtime computes a Relu with its QuantizeLinear, so that it may stand between them.
    """

    def source(value: ir.Value | None) -> str:
        producer = value.producer() if value is not None else None
        return producer.op_type if producer is not None else ""

    def is_quantized(node: ir.Node) -> bool:
        readers = node.outputs[0].consumers()
        return any(
            reader.op_type == "QuantizeLinear" or (reader.op_type == "Relu" and is_quantized(reader)) for reader in readers
        )

    nodes = [node for node in model.graph if node.op_type in INPUTS and is_quantized(node)]
    return [node for node in nodes if all(source(value) == "DequantizeLinear" for value in node.inputs)]


def test_every_operator_that_rounds_is_computed_for_every_input(pair: Pair) -> None:
    operators = computed_in_integers(model_of(pair.after))
    assert len(operators) > 5
    for node in operators:
        perturbation = pair.perturbations[str(node.name)]  # a KeyError: it was forgotten
        wanted = 256 if any(is_constant(value) for value in node.inputs) else INPUTS[node.op_type]
        assert wanted is None or perturbation.inputs == wanted, node.name
    assert set(pair.perturbations) == {node.name for node in operators}
    assert any(found.ambiguous_before for found in pair.perturbations.values())  # there was something to perturb


def is_constant(value: ir.Value | None) -> bool:
    """Whether a dequantized operand is one integer of the graph, as the 3 of a Hardswish."""
    dequantize = value.producer() if value is not None else None
    integers = dequantize.inputs[0] if dequantize is not None else None
    return integers is not None and integers.const_value is not None


def test_nothing_is_ambiguous_in_the_file(pair: Pair) -> None:
    model, again = load_graph(pair.after.path), PerturbScalesPass()
    InferShapesPass()(model)
    assert not again(model).modified
    assert [found.operator for found in again.perturbations] == list(pair.perturbations)
    assert [found for found in again.perturbations if found.ambiguous_before or found.factor != 1] == []


def test_scales_change_by_a_thousandth_at_most_and_outputs_stay_close(
    pair: Pair, golden: Tensor, target: TargetProfile
) -> None:
    """With random weights, one step of an early layer can grow to the outputs: unrelated outputs would be at about 0 dB."""
    assert max(abs(found.factor - 1) for found in pair.perturbations.values()) <= 1e-3
    level = target.runtime.graph_optimization_level
    before, after = (run_reference(graph, golden.numpy(), level) for graph in (pair.before, pair.after))
    assert pair.before.sha256 != pair.after.sha256
    assert sqnr_db(before, after) > 8


def test_quantize_and_dequantize_of_a_tensor_keep_one_scale(pair: Pair) -> None:
    before, after = (scales(model_of(exported)) for exported in (pair.before, pair.after))
    factors = {name: float(after[name] / before[name]) for name in before}
    assert any(factor != 1 for factor in factors.values())
    checked = 0
    for node in model_of(pair.after).graph:
        source = node.inputs[0].producer() if node.op_type == "DequantizeLinear" and node.inputs[0] is not None else None
        if source is not None and source.op_type == "QuantizeLinear":
            assert factors[str(node.name)] == pytest.approx(factors[str(source.name)], rel=2e-7)  # float32
            checked += 1
    assert checked > 20


def scales(model: ir.Model) -> dict[str, NDArray[np.float32]]:
    """Return the scale of each QuantizeLinear and DequantizeLinear that has one for the whole tensor, by its name."""
    found = {}
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.inputs[1] is not None:
            assert node.inputs[1].const_value is not None
            scale = node.inputs[1].const_value.numpy()
            if scale.ndim == 0:
                found[str(node.name)] = scale
    return found


def pooling(size: int, *, scale: NDArray[np.float32] | np.float32 | None = None) -> ir.Model:
    """Make a graph of one AveragePool of integers, size x size."""
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["u8"], name="q"),
        helper.make_node("DequantizeLinear", ["u8", "scale", "zero"], ["x"], name="dq"),
        helper.make_node("AveragePool", ["x"], ["mean"], name="pool", kernel_shape=[size, size]),
        helper.make_node("QuantizeLinear", ["mean", "scale_of_mean", "zero"], ["m8"], name="q_mean"),
        helper.make_node("DequantizeLinear", ["m8", "scale_of_mean", "zero"], ["y"], name="dq_mean"),
    ]
    constants = {"scale": np.float32(0.02), "scale_of_mean": np.float32(0.02) if scale is None else scale, "zero": np.uint8(0)}
    graph = helper.make_graph(
        nodes,
        "pooling",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1, 1, 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]))


def test_an_operator_for_which_no_scale_is_unambiguous_is_named() -> None:
    """Its means are 0.00020 steps apart: of each half, one is always within the error of float32, which is 0.00024 wide."""
    with pytest.raises(ExportError, match=r"no output scale within 0\.1% .* round pool \(AveragePool\) alike"):
        PerturbScalesPass()(pooling(16, scale=np.float32(0.4)))


def test_what_it_ensures_is_checked() -> None:
    with pytest.raises(ir.passes.PostconditionError, match=r"pool still rounds \d+ of its inputs"):
        PerturbScalesPass().ensures(pooling(2))
    model, perturb = pooling(2), PerturbScalesPass()
    perturb(model)
    (found,) = perturb.perturbations
    assert found.ambiguous_before > 0
    assert found.factor != 1


def test_a_scale_per_channel_is_refused() -> None:
    with pytest.raises(ir.passes.PreconditionError, match="q_mean has more than one scale"):
        PerturbScalesPass()(pooling(2, scale=np.full(3, 0.02, np.float32)))


def test_the_plane_of_a_global_average_must_be_known() -> None:
    model = pooling(2)
    pool = model.graph.node("pool")
    pool.op_type = "GlobalAveragePool"
    pool.attributes.clear()
    with pytest.raises(ir.passes.PreconditionError, match="height and width of the input of pool are not known"):
        PerturbScalesPass()(model)
