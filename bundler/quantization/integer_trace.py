"""The integer values of every quantized tensor that torch computes, for the layer-wise comparison with ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["TorchTensor", "trace_integers"]


@dataclass(frozen=True, kw_only=True)
class TorchTensor:
    """A quint8 tensor: its integer values, uint8 of any shape, with scale and zero point."""

    scale: float
    zero_point: int
    values: NDArray[np.uint8]


def trace_integers(converted: nn.Module, image: Tensor) -> tuple[TorchTensor, ...]:
    """Run one image and return every per-tensor quantized tensor, in order of execution.

    Args:
        converted: an INT8 network; call this inside `quantized_engine`.
        image: a normalized image, float32 [1, 3, H, W].
    """
    with torch.no_grad(), _Recorder() as recorder:
        converted(image)
    return tuple(recorder.tensors)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tensors: list[TorchTensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_quantized and result.qscheme() == torch.per_tensor_affine:
            values = result.int_repr().contiguous().clone().numpy()
            self.tensors.append(TorchTensor(scale=result.q_scale(), zero_point=result.q_zero_point(), values=values))
        return result
