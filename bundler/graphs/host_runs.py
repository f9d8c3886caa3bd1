"""What a graph computes on the build host, and whether that is what torch computes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bundler.errors import ExportError
from bundler.graphs.comparison import informative_problem, sqnr_db
from bundler.graphs.exported_graph import INPUT, ExportedGraph
from bundler.graphs.sessions import LEVELS, make_session
from bundler.targets import ExportProfile, OptimizationLevel

__all__ = [
    "TorchAgreement",
    "agree_with_torch",
    "digest_at_each_level",
    "outputs_sha256",
    "require_informative",
    "run_reference",
    "runnable",
]

Outputs = NDArray[np.float32]

NOISE_MARGIN = 10  # times the median of quantization noise, which torch and ONNX Runtime make each for itself, in long tails
# SQNR, in dB, of ONNX Runtime's outputs against torch's INT8 from which it does not matter which of the two is nearer to FP32:
# 3 % of the power. Each rounds by itself, so their distances to FP32 are two draws of a few outputs. Where little else differs
# from the reference (after training, at 20 to 31 dB), healthy networks lost from -9 to +6 dB, and were 20 to 29 dB apart.
CLOSE_DB = 15.0


@dataclass(frozen=True, kw_only=True)
class TorchAgreement:
    """ONNX Runtime against torch on the golden inputs: steps apart (of INT8 logits), and the share of equal values."""

    max_steps: int | None
    equal_share: float


def runnable(graph: ExportedGraph, level: OptimizationLevel) -> Callable[[Outputs], Outputs]:
    """Load a graph and return what runs it: inputs float32 [N, 3, H, W] to its output."""
    session = make_session(graph.path, level)

    def run(inputs: Outputs) -> Outputs:
        outputs: Outputs = session.run(None, {INPUT: inputs})[0]
        return outputs

    return run


def run_reference(graph: ExportedGraph, inputs: Outputs, level: OptimizationLevel) -> Outputs:
    """Run a graph picture by picture, as the device runner does; inputs float32 [N, 3, H, W].

    Raises:
        ExportError: it computes in integers, and a batch gives other outputs than its pictures one by one.
    """
    run = runnable(graph, level)
    outputs = _one_by_one(run, inputs)
    in_integers = graph.output_step is not None and not graph.float_operators
    if in_integers and not np.array_equal(run(inputs), outputs):
        raise ExportError(
            f"{graph.path.name} gives other outputs for a batch of {len(inputs)} than for its pictures one by one",
            next_step="Report it with the model's name and `bundler doctor --json`.",
        )
    return outputs


def digest_at_each_level(graph: ExportedGraph, inputs: Outputs) -> dict[OptimizationLevel, str]:
    """Return the sha256 of the outputs at each graph optimization level; a runtime that fuses less computes in float."""
    return {level: outputs_sha256(_one_by_one(runnable(graph, level), inputs)) for level in LEVELS}


def _one_by_one(run: Callable[[Outputs], Outputs], inputs: Outputs) -> Outputs:
    return np.concatenate([run(inputs[index : index + 1]) for index in range(len(inputs))])


def outputs_sha256(outputs: NDArray[np.float32]) -> str:
    """Return the digest as the device runner computes it: of the little-endian float32 values in their order."""
    return hashlib.sha256(outputs.astype("<f4").tobytes()).hexdigest()


def require_informative(model: str, outputs: NDArray[np.float32]) -> None:
    """Refuse a network on which every comparison would succeed.

    Raises:
        ExportError: its FP32 outputs [N, classes] are zero, not finite, or the same for every class or picture.
    """
    problem = informative_problem(outputs)
    if problem:
        raise ExportError(
            f"nothing can be proved with these weights: {problem} of {model} on the golden pictures",
            next_step="Give trained weights (--weights FILE or pretrained), or --weights random; and images that differ more"
            " (--calibration DIR) where the outputs are the same for every one.",
        )


def agree_with_torch(
    graph: ExportedGraph,
    outputs: Outputs,
    *,
    torch_outputs: Outputs,
    fp32_outputs: Outputs,
    profile: ExportProfile,
) -> TorchAgreement:
    """Compare ONNX Runtime with torch on the golden inputs (outputs [N, classes] or [N, boxes, 5 + classes]).

    A float graph must reach `fp32_min_sqnr_db`. An INT8 graph rounds its requantization differently from torch's kernels, so
    equality is not promised (pytorch#146541): against FP32, the outputs may not lose more than `torch_sqnr_loss_db` compared
    with torch's INT8, unless they are within `CLOSE_DB` of that. An INT8 output must stay within `torch_max_steps` of torch's,
    or within ten times the noise (median) that quantization makes in either of them on the same picture, where that is more:
    random weights can amplify a rounding as far.

    Raises:
        ExportError: it does not.
    """
    if not graph.quantized:
        reached, wanted = sqnr_db(torch_outputs, outputs), profile.fp32_min_sqnr_db
        if reached < wanted:
            raise _apart(graph, f"{reached:.1f} dB from torch, and {wanted:.0f} dB are asked for")
        return TorchAgreement(max_steps=None, equal_share=float(np.mean(outputs == torch_outputs)))
    steps = None
    if graph.rounding is not None:
        outputs = graph.rounding.applied(outputs)  # to compare like with like
        apart = np.rint(np.abs(outputs.astype(np.float64) - torch_outputs) / graph.rounding.step).astype(int).max(1)
        noisier = np.maximum(*(np.median(np.abs(own - fp32_outputs), axis=1) for own in (torch_outputs, outputs)))
        allowed = np.maximum(profile.torch_max_steps, (NOISE_MARGIN * noisier / graph.rounding.step).astype(int))
        if (apart > allowed).any():
            worst = int((apart - allowed).argmax())
            raise _apart(graph, f"up to {apart[worst]} quantization steps from torch's INT8, and {allowed[worst]} are allowed")
        steps = int(apart.max())
    loss = sqnr_db(fp32_outputs, torch_outputs) - sqnr_db(fp32_outputs, outputs)
    if loss > profile.torch_sqnr_loss_db and sqnr_db(torch_outputs, outputs) < CLOSE_DB:
        raise _apart(
            graph, f"{loss:.1f} dB further from FP32 than torch's INT8, and {profile.torch_sqnr_loss_db} dB are allowed"
        )
    return TorchAgreement(max_steps=steps, equal_share=float(np.mean(np.isclose(outputs, torch_outputs, rtol=1e-6, atol=0))))


def _apart(graph: ExportedGraph, figure: str) -> ExportError:
    return ExportError(
        f"{graph.path.name} computes something else than the model it was exported from: {figure}",
        next_step="Calibrate with pictures like those of the device; if it stays, report it with `bundler doctor --json`.",
    )
