"""ExportedGraph: an ONNX file that was checked, and what the check found in it."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from bundler.errors import ExportError, OutOfSpaceError
from bundler.graphs.passes.integer_outputs import LogitsRounding
from bundler.graphs.passes.rounding_ambiguity import TieProof
from bundler.graphs.runtime_versions import OLDEST, RuntimeVersion, runtime_minimum
from bundler.graphs.saturating_products import SaturationProof, prove_saturation
from bundler.models.specs import Task

__all__ = ["INPUT", "OUTPUTS", "ExportedGraph", "ensure_graph"]

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

    That is `logits` [batch, classes] or `detections` [batch, boxes, 5 + classes]. `float_operators` counts what ONNX Runtime
    still computes in float in a quantized graph; `rounding` is how torch rounds the logits of a quantized one, None of
    detections. `ties` and `saturation` prove, operator by operator, that other processors give the same bits. `runtime` is the
    oldest ONNX Runtime that executes it.
    """

    path: Path
    sha256: str
    bytes: int
    opset: int
    quantized: bool
    quantize_nodes: int
    dequantize_nodes: int
    float_operators: dict[str, int]
    rounding: LogitsRounding | None
    ties: tuple[TieProof, ...] = ()
    saturation: tuple[SaturationProof, ...] = ()
    runtime: RuntimeVersion = OLDEST

    @property
    def output_step(self) -> float | None:
        """The unit in which outputs are told apart, a quantization step of torch's; None where the output is in float."""
        return self.rounding.step if self.rounding else None

    @property
    def float_layers(self) -> int:
        """How many convolutions and matrix products of a quantized graph ONNX Runtime leaves in float."""
        return sum(self.float_operators.get(name, 0) for name in _LAYERS)


def ensure_graph(
    path: Path,
    *,
    opset: int,
    task: Task = "classification",
    quantized: bool,
    float_layers: int = 0,
    rounding: LogitsRounding | None = None,
    ties: tuple[TieProof, ...] = (),
) -> ExportedGraph:
    """Check an exported file and return what it holds.

    Ensured: `onnx.checker` with full check; the opset; the names; the dynamic batch axis; in a quantized graph, Quantize and
    Dequantize nodes, and just as many convolutions and matrix products as are expected that ONNX Runtime leaves in float; in a
    float graph, no Quantize and Dequantize.

    Raises:
        ExportError: one of these does not hold; it names the node.
    """
    model = onnx.load(path)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _broken(path, f"onnx.checker refuses it: {error}") from error
    _ensure_interface(path, model, opset, OUTPUTS[task])
    census = Counter(node.op_type for node in model.graph.node)
    quantize, dequantize = census["QuantizeLinear"], census["DequantizeLinear"]
    if quantized != (quantize > 0 and dequantize > 0):
        raise _broken(path, f"it has {quantize} QuantizeLinear and {dequantize} DequantizeLinear nodes")
    float_operators = _float_operators(path) if quantized else Counter[str]()
    content = path.read_bytes()
    graph = ExportedGraph(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        opset=opset,
        quantized=quantized,
        quantize_nodes=quantize,
        dequantize_nodes=dequantize,
        float_operators=dict(sorted(float_operators.items())),
        rounding=rounding,
        ties=ties,
        saturation=prove_saturation(path) if quantized else (),
        runtime=runtime_minimum(model),
    )
    if quantized and graph.float_layers != float_layers:
        found = ", ".join(f"{name} x{count}" for name, count in graph.float_operators.items() if name in _LAYERS) or "nothing"
        raise _broken(path, f"ONNX Runtime would compute {found} in float, and {float_layers} layers are meant to be")
    return graph


def _ensure_interface(path: Path, model: onnx.ModelProto, opset: int, output: str) -> None:
    found = {entry.domain: entry.version for entry in model.opset_import}
    if found != {"": opset}:
        raise _broken(path, f"it uses the operator sets {found}, not {opset}")
    for kind, values, name in (("input", model.graph.input, INPUT), ("output", model.graph.output, output)):
        if [value.name for value in values] != [name]:
            raise _broken(path, f"its {kind} is called {[value.name for value in values]}, not {name!r}")
        if values[0].type.tensor_type.shape.dim[0].dim_param != BATCH:
            raise _broken(path, f"the batch axis of its {kind} is not dynamic")


def _float_operators(path: Path) -> Counter[str]:
    """Count what ONNX Runtime computes in float, before and behind Quantize, in the graph as it will execute it."""
    with tempfile.TemporaryDirectory(prefix=".optimized-", dir=path.parent) as folder:  # TMPDIR may be small
        optimized = Path(folder) / "optimized.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = 4  # it warns that the optimized file is for this machine only; it is read and thrown away
        options.optimized_model_filepath = str(optimized)
        try:
            ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            if shutil.disk_usage(folder).free < path.stat().st_size:  # ONNX Runtime does not say so
                raise OutOfSpaceError(str(path)) from error
            raise
        graph = onnx.load(optimized).graph
    floats = {INPUT}
    counted: Counter[str] = Counter()
    for node in graph.node:  # in topological order
        if node.op_type == "DequantizeLinear" or (node.op_type == "Cast" and _to(node) == TensorProto.FLOAT):
            floats.update(node.output)
        elif node.op_type != "QuantizeLinear" and floats.intersection(node.input):
            floats.update(node.output)
            if node.op_type not in _MOVING:
                counted[node.op_type] += 1
    return counted


def _to(cast: onnx.NodeProto) -> int:
    return int(helper.get_node_attr_value(cast, "to"))


def _broken(path: Path, reason: str) -> ExportError:
    return ExportError(
        f"the exported graph {path.name} does not hold: {reason}",
        next_step="A fault of edge-bundler or of its torch: report it with the model's name and `bundler doctor --json`.",
    )
