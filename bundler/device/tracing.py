"""Run an instrumented INT8 graph and return its quantized tensors, for the layer-wise comparison of the build host.

An instrumented graph has the network's own output first, and every quantized tensor after it.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .device_error import UNUSABLE, DeviceError
from .runner_json import OptimizationLevel
from .sessions import load_model

__all__ = ["OUTPUTS", "VALUES", "sampled", "trace_graph"]

OUTPUTS: Final = "outputs"  # the name of the network's own outputs among the tensors
VALUES: Final = 16_384  # at most, of a tensor


def trace_graph(model: Path, inputs: Path, level: OptimizationLevel, count: int) -> str:
    """Return a compressed .npz as base64: the network's outputs on the first `count` inputs, and the tensors of the first.

    Raises:
        DeviceError: the graph cannot be run, or the inputs cannot be read.
    """
    try:
        batch: NDArray[np.float32] = np.load(inputs, allow_pickle=False)[:count]
    except (OSError, ValueError, EOFError) as error:
        raise DeviceError(UNUSABLE, f"{inputs} cannot be read: {error}", "Give the golden inputs of the bundle.") from error
    loaded = load_model(model.parent, model.name, level)
    name = loaded.first_input
    first, *names = [str(output.name) for output in loaded.session.get_outputs()]
    outputs = [loaded.run([first], {name: image[None]})[0] for image in batch]
    tensors = loaded.run(names, {name: batch[:1]}) if names else []  # no names would mean all
    arrays: dict[str, Any] = {OUTPUTS: np.concatenate(outputs), **dict(zip(names, map(sampled, tensors), strict=True))}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return base64.encodebytes(content.getvalue()).decode()


def sampled(values: NDArray[Any]) -> NDArray[Any]:
    """Return at most `VALUES` values of a tensor, evenly spaced."""
    flat = values.reshape(-1)
    return flat[:: max(-(-flat.size // VALUES), 1)]
