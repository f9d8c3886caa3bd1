"""Execution of exported graphs on the build host, and comparison of their outputs with torch's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bundler.device.numerics import informative_problem, outputs_sha256, sqnr_db
from bundler.device.sessions import OPTIMIZATION_LEVELS
from bundler.errors import ExportError
from bundler.graphs.exported_graph import INPUT, ExportedGraph
from bundler.graphs.host_sessions import make_session
from bundler.targets import ExportProfile, OptimizationLevel

__all__ = [
    "TorchAgreement",
    "agree_with_torch",
    "digest_at_each_level",
    "require_informative",
    "run_reference",
    "runnable",
]

Outputs = NDArray[np.float32]

NOISE_MARGIN = 10  # times the median quantization noise; torch and ONNX Runtime round independently, and errors have long tails
# SQNR of ONNX Runtime's outputs against torch's INT8, in dB, from which their distances to FP32 are not compared: 3 % of the
# power. The two round independently, so that each distance is a random draw over a few outputs. If quantization makes little
# noise (after training, 20 to 31 dB), correct networks lost from -9 to +6 dB against FP32, and were 20 to 29 dB apart.
CLOSE_DB = 15.0


@dataclass(frozen=True, kw_only=True)
class TorchAgreement:
    """ONNX Runtime against torch on the golden inputs: the largest difference of logits in steps, the share of equal values."""

    max_steps: int | None
    equal_share: float


def runnable(graph: ExportedGraph, level: OptimizationLevel) -> Callable[[Outputs], Outputs]:
    """Load a graph and return the function from inputs, float32 [N, 3, H, W], to its output."""
    session = make_session(graph.path, level)

    def run(inputs: Outputs) -> Outputs:
        outputs: Outputs = session.run(None, {INPUT: inputs})[0]
        return outputs

    return run


def run_reference(graph: ExportedGraph, inputs: Outputs, level: OptimizationLevel) -> Outputs:
    """Run a graph image by image, as the device program does; inputs float32 [N, 3, H, W].

    Raises:
        ExportError: it computes in integers, and a batch gives other outputs than its images one by one.
    """
    run = runnable(graph, level)
    outputs = _one_by_one(run, inputs)
    in_integers = graph.output_step is not None and not graph.float_operators
    if in_integers and not np.array_equal(run(inputs), outputs):
        raise ExportError(
            f"{graph.path.name} gives other outputs for a batch of {len(inputs)} images than for the same images one by one",
            next_step="This is a fault of edge-bundler or of the installed onnxruntime; `bundler doctor --json` prints its "
            "version. Use that of constraints.txt.",
        )
    return outputs


def digest_at_each_level(graph: ExportedGraph, inputs: Outputs) -> dict[OptimizationLevel, str]:
    """Return the sha256 of the outputs at each graph optimization level; a runtime that fuses less computes in float."""
    return {level: outputs_sha256(_one_by_one(runnable(graph, level), inputs)) for level in OPTIMIZATION_LEVELS}


def _one_by_one(run: Callable[[Outputs], Outputs], inputs: Outputs) -> Outputs:
    return np.concatenate([run(inputs[index : index + 1]) for index in range(len(inputs))])


def require_informative(model: str, outputs: NDArray[np.float32]) -> None:
    """Refuse outputs that a comparison could not distinguish from wrong ones.

    Raises:
        ExportError: its FP32 outputs [N, classes] are zero, not finite, or the same for every class or image.
    """
    problem = informative_problem(outputs)
    if problem:
        raise ExportError(
            f"the outputs of {model} with these weights cannot be verified: on the golden inputs, {problem}",
            next_step="Give trained weights (--weights FILE or pretrained), or --weights random. If the outputs are the same "
            "for every image, give images that differ more: --calibration DIR.",
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

    A float graph must reach `fp32_min_sqnr_db`. ONNX Runtime requantizes with another rounding than torch's kernels, so that
    INT8 outputs are not equal (https://github.com/pytorch/pytorch/issues/146541). Their SQNR against FP32 may be lower than
    that of torch's INT8 by `torch_sqnr_loss_db`, or by more if the two are within `CLOSE_DB` of each other. Logits must stay
    within `torch_max_steps` of torch's, or within ten times the median quantization noise of either of them on the same image,
    if that is more: random weights can amplify a rounding that much.

    Raises:
        ExportError: the outputs are further apart.
    """
    if not graph.quantized:
        reached, wanted = sqnr_db(torch_outputs, outputs), profile.fp32_min_sqnr_db
        if reached < wanted:
            raise _apart(graph, f"its SQNR against torch is {reached:.1f} dB, and at least {wanted:.0f} dB are required")
        return TorchAgreement(max_steps=None, equal_share=float(np.mean(outputs == torch_outputs)))
    steps = None
    if graph.rounding is not None:
        outputs = graph.rounding.applied(outputs)  # as torch rounds its own
        apart = np.rint(np.abs(outputs.astype(np.float64) - torch_outputs) / graph.rounding.step).astype(int).max(1)
        noisier = np.maximum(*(np.median(np.abs(own - fp32_outputs), axis=1) for own in (torch_outputs, outputs)))
        allowed = np.maximum(profile.torch_max_steps, (NOISE_MARGIN * noisier / graph.rounding.step).astype(int))
        if (apart > allowed).any():
            worst = int((apart - allowed).argmax())
            raise _apart(
                graph,
                f"its outputs differ from torch's INT8 by up to {apart[worst]} quantization steps, and {allowed[worst]} are "
                "allowed",
            )
        steps = int(apart.max())
    loss = sqnr_db(fp32_outputs, torch_outputs) - sqnr_db(fp32_outputs, outputs)
    if loss > profile.torch_sqnr_loss_db and sqnr_db(torch_outputs, outputs) < CLOSE_DB:
        raise _apart(
            graph,
            f"its SQNR against FP32 is {loss:.1f} dB lower than that of torch's INT8, and {profile.torch_sqnr_loss_db} dB are "
            "allowed",
        )
    return TorchAgreement(max_steps=steps, equal_share=float(np.mean(np.isclose(outputs, torch_outputs, rtol=1e-6, atol=0))))


def _apart(graph: ExportedGraph, figure: str) -> ExportError:
    return ExportError(
        f"{graph.path.name} does not compute what its torch model computes: {figure}",
        next_step="Calibrate with images like those of the device (--calibration DIR). `bundler doctor --json` prints the "
        "versions of torch and onnxruntime; those of constraints.txt are tested.",
    )
