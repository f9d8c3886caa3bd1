"""ExportedGraph: an ONNX graph that was checked and saved, and what the checks found in it."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir

from bundler.errors import ExportError, OutOfSpaceError
from bundler.graphs.host_sessions import make_session
from bundler.graphs.passes.logits_rounding import LogitsRounding
from bundler.graphs.passes.rounding_ambiguity import ScalePerturbation
from bundler.graphs.runtime_versions import OLDEST, RuntimeVersion, runtime_minimum
from bundler.graphs.saturating_products import SaturationCheck, check_saturation
from bundler.graphs.serialization import load_graph, to_proto
from bundler.models.specs import Task

__all__ = ["BATCH", "INPUT", "OUTPUTS", "ExportedGraph", "invalid", "save_graph"]

INPUT, BATCH = "image", "batch"
OUTPUTS: Mapping[Task, str] = {"classification": "logits", "detection": "detections"}

# Operators that only move data; they compute nothing, in whatever type.
_MOVING = frozenset(
    {
        "Transpose",
        "Flatten",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Identity",
        "Concat",
        "Slice",
        "Split",
        "Resize",
        "Shape",
        "Gather",
    }
)
_LAYERS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


@dataclass(frozen=True, kw_only=True)
class ExportedGraph:
    """A checked ONNX graph with one input `image` [batch, 3, H, W] and one output.

    The output is `logits` [batch, classes] or `detections` [batch, boxes, 5 + classes].

    Of a quantized graph, `float_operators` counts the operators that ONNX Runtime computes in float; `rounding` is how
    torch rounds the logits, None for detections; `perturbations` and `saturation` state, operator by operator, why other
    processors give the same bits. `runtime` is the oldest ONNX Runtime that executes the graph. `model` is the quantized
    graph in memory; a float one is not kept, as nothing reads it again and its weights take as much memory as torch's.
    """

    path: Path
    sha256: str
    bytes: int
    opset: int
    quantized: bool
    quantize_nodes: int
    dequantize_nodes: int
    float_operators: dict[str, int]
    rounding: LogitsRounding | None = None
    perturbations: tuple[ScalePerturbation, ...] = ()
    saturation: tuple[SaturationCheck, ...] = ()
    runtime: RuntimeVersion = OLDEST
    model: ir.Model | None = field(default=None, repr=False, compare=False)

    @property
    def output_step(self) -> float | None:
        """The quantization step of torch's logits, the unit in which outputs are compared; None if the output is in float."""
        return self.rounding.step if self.rounding else None

    @property
    def float_layers(self) -> int:
        """The number of convolutions and matrix products of a quantized graph that ONNX Runtime computes in float."""
        return sum(self.float_operators.get(name, 0) for name in _LAYERS)


def save_graph(
    model: ir.Model,
    path: Path,
    *,
    opset: int,
    task: Task = "classification",
    quantized: bool,
    float_layers: int = 0,
) -> ExportedGraph:
    """Check a graph, write it to `path`, and return it with what the checks found.

    Ensured: `onnx.checker` with full check; the opset; the names of input and output; the dynamic batch axis; in a quantized
    graph, QuantizeLinear and DequantizeLinear nodes, and exactly `float_layers` convolutions and matrix products that ONNX
    Runtime computes in float; in a float graph, no QuantizeLinear and DequantizeLinear.

    Raises:
        ExportError: one of these does not hold; the message names the node.
        OutOfSpaceError: the disk is full.
    """
    content = to_proto(model).SerializeToString()
    try:
        onnx.checker.check_model(content, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise invalid(path, f"onnx.checker reports {error}") from error
    _ensure_interface(path, model, opset, OUTPUTS[task])
    census = Counter(node.op_type for node in model.graph)
    quantize, dequantize = census["QuantizeLinear"], census["DequantizeLinear"]
    if quantized != (quantize > 0 and dequantize > 0):
        raise invalid(path, f"it has {quantize} QuantizeLinear and {dequantize} DequantizeLinear nodes")
    path.write_bytes(content)
    float_operators = _float_operators(path) if quantized else Counter[str]()
    graph = ExportedGraph(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        opset=opset,
        quantized=quantized,
        quantize_nodes=quantize,
        dequantize_nodes=dequantize,
        float_operators=dict(sorted(float_operators.items())),
        saturation=check_saturation(model) if quantized else (),
        runtime=runtime_minimum(model),
        model=model if quantized else None,
    )
    if quantized and graph.float_layers != float_layers:
        found = ", ".join(f"{name} x{count}" for name, count in graph.float_operators.items() if name in _LAYERS) or "nothing"
        raise invalid(path, f"ONNX Runtime would compute {found} in float, and {float_layers} layers are meant to be")
    return graph


def _ensure_interface(path: Path, model: ir.Model, opset: int, output: str) -> None:
    if model.graph.opset_imports != {"": opset}:
        raise invalid(path, f"it uses the operator sets {model.graph.opset_imports}, not {opset}")
    for kind, values, name in (("input", model.graph.inputs, INPUT), ("output", model.graph.outputs, output)):
        if [value.name for value in values] != [name]:
            raise invalid(path, f"its {kind} is called {[value.name for value in values]}, not {name!r}")
        shape = values[0].shape
        if not shape or not isinstance(shape[0], ir.SymbolicDim) or shape[0].value != BATCH:
            raise invalid(path, f"the batch axis of its {kind} is not dynamic")


def _float_operators(path: Path) -> Counter[str]:
    """Count what ONNX Runtime computes in float (before QuantizeLinear, behind DequantizeLinear) in the graph it executes."""
    with tempfile.TemporaryDirectory(prefix=".optimized-", dir=path.parent) as folder:  # TMPDIR may be small
        optimized = Path(folder) / "optimized.onnx"
        try:
            make_session(path, exact_products=False, optimized=optimized)
        except Exception as error:
            if shutil.disk_usage(folder).free < path.stat().st_size:  # ONNX Runtime does not report it
                raise OutOfSpaceError(str(path)) from error
            raise
        graph = load_graph(optimized).graph
    floats = set(graph.inputs)
    counted: Counter[str] = Counter()
    for node in graph:  # in topological order
        if node.op_type == "DequantizeLinear" or (
            node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT
        ):
            floats.update(node.outputs)
        elif node.op_type != "QuantizeLinear" and not floats.isdisjoint(node.inputs):
            floats.update(node.outputs)
            if node.op_type not in _MOVING:
                counted[node.op_type] += 1
    return counted


def invalid(path: Path, reason: str) -> ExportError:
    """Return the failure of a graph that does not hold what the export ensures."""
    return ExportError(
        f"validation of {path.name} failed: {reason}",
        next_step="This is a fault of edge-bundler or of the installed torch; `bundler doctor --json` prints the versions. "
        "Those of constraints.txt are tested.",
    )
