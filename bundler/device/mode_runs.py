"""Run the model of a mode image by image, as a device does."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle_files import Bundle
from .device_error import UNUSABLE, DeviceError
from .runner_json import BundleMode, RunnerDocument
from .sessions import Model, load_model

__all__ = ["load_array", "load_mode", "report_progress", "run_image"]


def load_array(bundle: Bundle, name: str) -> NDArray[Any]:
    array: NDArray[Any] = np.load(bundle.root / name, allow_pickle=False)
    return array


def load_mode(bundle: Bundle, mode: BundleMode) -> Model:
    """Load the model of a mode.

    Raises:
        DeviceError: ONNX Runtime cannot run it.
    """
    return load_model(bundle.root, mode.model, bundle.document.graph_optimization_level)


def run_image(document: RunnerDocument, model: Model, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the output for one image [1, 3, H, W].

    Raises:
        DeviceError: ONNX Runtime cannot run the model, or the output of a detector is not [N, boxes, 5 + classes].
    """
    (output,) = model.run([document.output], {document.input: image})
    if document.task == "detection" and (output.ndim != 3 or output.shape[2] < 6):
        reason = f"the output has shape {list(output.shape)}, not [N, boxes, 5 + classes]"
        raise DeviceError(UNUSABLE, reason, "The model is not a detector that this program supports; build the bundle again.")
    result: NDArray[np.float32] = output
    return result


def report_progress(mode: BundleMode, number: int, count: int) -> None:
    """Print which image is run, for the progress bar of the build host and for people."""
    print(f"{mode.name}: image {number} of {count}", file=sys.stderr, flush=True)
