"""ONNX Runtime sessions on the build host, which have the options of the device program's."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from bundler.device.runner_json import OptimizationLevel
from bundler.device.sessions import session_options

__all__ = ["make_session"]

_FATAL = 4  # ONNX Runtime's severity: the least that it prints


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
    options = session_options(level)
    if exact_products:
        options.add_session_config_entry("session.x64quantprecision", "1")
    if optimized is not None:
        options.log_severity_level = _FATAL
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
