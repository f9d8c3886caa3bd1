"""Sessions of ONNX Runtime, their options, and the models of a bundle in them."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .device_error import CANNOT_RUN, INSTALL, UNUSABLE, DeviceError, first_line
from .runner_json import OptimizationLevel, RunnerDocument

__all__ = [
    "OPTIMIZATION_LEVELS",
    "Model",
    "load_model",
    "require_numpy",
    "require_onnxruntime",
    "session_options",
]

# Names of onnxruntime.GraphOptimizationLevel.
OPTIMIZATION_LEVELS: Final[Mapping[OptimizationLevel, str]] = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model in a session; `sha256` is of the bytes that the session was made of, so that it names what is executed."""

    path: str
    session: Any
    sha256: str

    def run(self, outputs: list[str] | None, inputs: Mapping[str, Any]) -> list[Any]:
        """Run the model.

        Raises:
            DeviceError: ONNX Runtime cannot run it.
        """
        with _running(self.path):
            given: list[Any] = self.session.run(outputs, inputs)
        return given

    @property
    def first_input(self) -> str:
        return str(self.session.get_inputs()[0].name)


def require_numpy() -> None:
    """Load numpy, which the modules of the commands import.

    Raises:
        DeviceError: it is not installed, or does not support this CPU.
    """
    os.environ.pop("OPENBLAS_CORETYPE", None)  # it would force the code of another CPU on this one
    try:
        import numpy as np  # noqa: F401, PLC0415
    except (ImportError, RuntimeError) as error:  # RuntimeError: the CPU is older than numpy supports
        raise DeviceError(CANNOT_RUN, f"numpy cannot be loaded: {first_line(error)}", INSTALL) from error


def onnxruntime() -> Any:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # its Linux builds report to Microsoft otherwise, and leave an identifier in HOME
    try:
        import onnxruntime as ort  # noqa: PLC0415
    except ImportError as error:
        raise DeviceError(CANNOT_RUN, f"onnxruntime cannot be loaded: {first_line(error)}", INSTALL) from error
    return ort


def require_onnxruntime(document: RunnerDocument) -> str:
    """Return the version of ONNX Runtime.

    Raises:
        DeviceError: it is not installed, or older than the operators of this bundle's models.
    """
    found, needed = str(onnxruntime().__version__), document.onnxruntime_minimum
    if _numbers(found) < _numbers(needed):
        python, next_step = document.python_minimum, INSTALL
        if sys.version_info[:2] < _numbers(python):
            next_step = (
                f"No onnxruntime {needed} is made for Python {sys.version.split()[0]}: use Python {python} or newer,"
                " or the container image that README.md names"
            )
        raise DeviceError(CANNOT_RUN, f"this bundle needs onnxruntime ≥ {needed}, found {found}", next_step)
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall("[0-9]+", version)[:2]))


def session_options(level: OptimizationLevel) -> Any:
    """Return options of a session at a graph optimization level, which logs errors only."""
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, OPTIMIZATION_LEVELS[level])
    return options


def load_model(root: Path, path: str, level: OptimizationLevel) -> Model:
    """Load a model of a bundle at `root` into a session.

    Raises:
        DeviceError: ONNX Runtime cannot run it.
    """
    options = session_options(level)
    options.intra_op_num_threads = _threads()
    with _running(path):
        content = (root / path).read_bytes()
        session = onnxruntime().InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return Model(path=path, session=session, sha256=hashlib.sha256(content).hexdigest())


def _threads() -> int:
    text = os.environ.get("EDGE_BUNDLER_THREADS") or str(len(os.sched_getaffinity(0)))
    if not re.fullmatch("[1-9][0-9]{0,3}", text):
        message = f"EDGE_BUNDLER_THREADS is {text!r}, not a number of threads"
        raise DeviceError(UNUSABLE, message, "Set it to a number from 1, or unset it to use every CPU.")
    return int(text)


@contextmanager
def _running(model: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime's errors have no common ancestor
        raise DeviceError(CANNOT_RUN, f"onnxruntime cannot run {model}: {first_line(error)}", INSTALL) from error
