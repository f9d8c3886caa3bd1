"""The oldest ONNX Runtime that executes a graph, from measurements of its operators.

Measured on x86-64 with onnxruntime 1.17.0, 1.17.3, 1.18.1, 1.19.2, 1.20.1, 1.21.1, 1.22.1, 1.23.2, 1.24.1, 1.30.0 and 1.32.0:
the INT8 graphs of MobileNetV2 and V3, ResNet18, DenseNet121 and EfficientNetB0 give the same bits with each. Detectors of
which only the backbone is INT8 run with each; the results of their float part differ in the last bits. Detectors that are INT8
as a whole do not run before 1.24.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
from packaging.version import Version

__all__ = ["NUMPY_MINIMUM", "OLDEST", "RuntimeVersion", "runtime_minimum"]

NUMPY_MINIMUM = "1.22"  # 1.22.4, which onnxruntime 1.17.0 was measured with


@dataclass(frozen=True, kw_only=True)
class RuntimeVersion:
    """A release of onnxruntime, and the oldest Python that it is made for."""

    onnxruntime: str
    python: str

    def __lt__(self, other: RuntimeVersion) -> bool:
        return Version(self.onnxruntime) < Version(other.onnxruntime)


OLDEST = RuntimeVersion(onnxruntime="1.17", python="3.9")  # of the device program itself, which needs Python 3.9

# By operator and type of the second input. 1.23.2, the last release for Python 3.10, answers "Could not find an implementation
# for ConvInteger(10)"; 1.24.1 executes it.
_SINCE: Mapping[tuple[str, ir.DataType], RuntimeVersion] = {
    ("ConvInteger", ir.DataType.INT8): RuntimeVersion(onnxruntime="1.24", python="3.11"),
}


def runtime_minimum(model: ir.Model) -> RuntimeVersion:
    """Return the oldest release that has a kernel for every operator of a graph, according to the table above."""
    found = ((node.op_type, node.inputs[1].const_value) for node in model.graph if len(node.inputs) > 1 and node.inputs[1])
    needed = [(op_type, weights.dtype) for op_type, weights in found if weights is not None]
    return max([OLDEST, *(_SINCE[item] for item in needed if item in _SINCE)])
