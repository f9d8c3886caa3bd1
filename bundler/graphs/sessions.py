"""ONNX Runtime sessions on the build host, and the graph optimization levels they are made at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from bundler.targets import OptimizationLevel

__all__ = ["LEVELS", "make_session"]

LEVELS: Mapping[OptimizationLevel, ort.GraphOptimizationLevel] = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_ERROR, _FATAL = 3, 4  # ONNX Runtime's severities: the least that it prints


def make_session(
    path: Path, level: OptimizationLevel = "all", *, exact_products: bool = True, optimized: Path | None = None
) -> ort.InferenceSession:
    """Load a graph on the CPU.

    Args:
        path: of the ONNX file.
        level: at which ONNX Runtime optimizes the graph.
        exact_products: x86 CPUs without VNNI add INT8 products in pairs, with saturation to 16 bits.
            `session.x64quantprecision` avoids that by other kernels, so that the outputs are exact on every build host.
        optimized: where to write the graph as ONNX Runtime executes it; it is made for this machine, of which ONNX Runtime
            warns.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _ERROR if optimized is None else _FATAL
    options.graph_optimization_level = LEVELS[level]
    if exact_products:
        options.add_session_config_entry("session.x64quantprecision", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
