"""The selftest: run every mode on the golden inputs and compare its outputs with those of the build host."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .answers import SELFTEST_SCHEMA, Machine, ModeResult, Selftest
from .bundle_files import Bundle
from .detections import boxes_agreement
from .device_error import DAMAGED, DeviceError
from .machine import examine_machine
from .mode_runs import load_array, load_mode, report_progress, run_image
from .numerics import informative_problem, outputs_sha256, sqnr_db, top1_agreement
from .runner_json import BundleMode, Tolerances
from .sessions import load_model, require_onnxruntime

__all__ = ["run_selftest"]

ARITHMETIC_OF_ONNXRUNTIME = "onnxruntime integers"


@dataclass(kw_only=True)
class Figures:
    """The figures of a mode, filled in as they are measured."""

    model_sha256: str | None = None
    outputs_sha256: str | None = None
    sqnr_db: float | None = None
    top1_agreement: float | None = None
    boxes_agreement: float | None = None
    max_steps: int | None = None


def run_selftest(bundle: Bundle, modes: Sequence[BundleMode]) -> Selftest:
    """Check this machine's arithmetic and run the modes; the checksums of the bundle are checked already.

    Raises:
        DeviceError: ONNX Runtime is missing, too old, or cannot run the model with the known answer.
    """
    machine = with_onnxruntime(examine_machine(), bundle)
    results = tuple(check_mode(bundle, mode, trusted=machine.known_answers.passed) for mode in modes)
    passed = bool(results) and all(result.verdict == "passed" for result in results)
    return Selftest(
        **vars(machine),
        schema=SELFTEST_SCHEMA,
        bundle=bundle.document.bundle,
        bundle_sha256=bundle.sha256,
        graph_optimization_level=bundle.document.graph_optimization_level,
        modes=results,
        verdict="passed" if passed else "failed",
    )


def with_onnxruntime(machine: Machine, bundle: Bundle) -> Machine:
    """Add the version of ONNX Runtime that is loaded, and whether its integers are right."""
    version = require_onnxruntime(bundle.document)
    checks = {**machine.known_answers.checks, ARITHMETIC_OF_ONNXRUNTIME: known_answer_is_right(bundle)}
    known = replace(machine.known_answers, checks=checks, passed=all(checks.values()))
    return replace(machine, onnxruntime=version, known_answers=known)


def known_answer_is_right(bundle: Bundle) -> bool:
    known = bundle.document.known_answer
    model = load_model(bundle.root, known.model, bundle.document.graph_optimization_level)
    expected = load_array(bundle, known.expected)
    given = model.run(None, {model.first_input: load_array(bundle, known.inputs)})[0]
    return bool(given.dtype == expected.dtype and given.shape == expected.shape and (given == expected).all())


def check_mode(bundle: Bundle, mode: BundleMode, *, trusted: bool) -> ModeResult:
    """Run a mode image by image and judge its outputs; what could not be measured stays None."""
    figures = Figures()
    try:
        reason = measure(bundle, mode, figures) if trusted else "not run: the arithmetic of this machine is wrong"
    except DeviceError as error:
        reason = str(error)
    return ModeResult(
        name=mode.name, samples=mode.samples, **asdict(figures), verdict="failed" if reason else "passed", reason=reason
    )


def measure(bundle: Bundle, mode: BundleMode, figures: Figures) -> str:
    """Fill in the figures; return why the outputs are out of bounds, or an empty text."""
    document, count = bundle.document, mode.samples
    inputs, reference = (load_array(bundle, name)[:count] for name in (document.golden.inputs, document.golden.reference))
    expected = load_array(bundle, mode.expected)
    model = load_mode(bundle, mode)
    figures.model_sha256 = model.sha256
    if model.sha256 != document.files[mode.model]:
        raise DeviceError(DAMAGED, f"{mode.model} changed while it was tested", "Copy the bundle again.")
    outputs = []
    for index in range(count):
        report_progress(mode, index + 1, count)
        outputs.append(run_image(document, model, inputs[index : index + 1]))
    given = np.concatenate(outputs)
    figures.outputs_sha256 = outputs_sha256(given)
    reason = incomparable(given, expected, reference)
    if reason:
        return reason
    figures.sqnr_db = finite(sqnr_db(reference, given))
    if document.task == "detection":
        figures.boxes_agreement = boxes_agreement(given, reference)
    elif given.ndim == 2:
        figures.top1_agreement = top1_agreement(reference, given)
    if mode.step is not None:
        figures.max_steps = round(float(np.abs(given.astype(np.float64) - expected).max()) / mode.step)
    return out_of_bounds(mode, document.tolerances, figures, finite(sqnr_db(expected, given)))


def incomparable(given: NDArray[np.float32], expected: NDArray[np.float32], reference: NDArray[np.float32]) -> str:
    """Return why a comparison of these outputs would show nothing; empty if they can be compared."""
    for name, values in (("expected outputs", expected), ("FP32 reference", reference)):
        if values.shape != given.shape:
            return f"the outputs have shape {list(given.shape)}, the {name} {list(values.shape)}"
        problem = informative_problem(values)
        if problem:
            return f"the {name} cannot reveal an error: {problem}"
    return "" if np.isfinite(given).all() else "the outputs are not finite"


def finite(ratio: float) -> float | None:
    """Return a ratio in dB as JSON has it: None for equal outputs."""
    return ratio if math.isfinite(ratio) else None


def out_of_bounds(mode: BundleMode, bounds: Tolerances, figures: Figures, closeness: float | None) -> str:
    """Compare with the tolerances; `closeness` is the SQNR to the expected outputs, which judges float outputs."""
    steps, recorded = figures.max_steps, mode.expected_sqnr_db
    if steps is not None and steps > bounds.max_steps:
        return f"an output is {steps} quantization steps from the expected one; {bounds.max_steps} are allowed"
    least = bounds.fp32_min_sqnr_db if recorded is None else recorded - bounds.sqnr_loss_db
    judged = {"expected": closeness if steps is None else None, "FP32": None if recorded is None else figures.sqnr_db}
    for what, ratio in judged.items():
        if ratio is not None and ratio < least:
            return f"SQNR to the {what} outputs is {ratio:.2f} dB; at least {least:.2f} dB are needed"
    return ""
