"""The integers that torch computes, tensor by tensor, as they are executed (issue 4, the ledger)."""

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
    """A quantized tensor: uint8 values of any shape, and what one step is worth."""

    scale: float
    zero_point: int
    values: NDArray[np.uint8]


def trace_integers(converted: nn.Module, picture: Tensor) -> tuple[TorchTensor, ...]:
    """Run one picture (float32 [1, 3, H, W], normalised) and return every quantized tensor; the engine must be set."""
    with torch.no_grad(), _Recorder() as recorder:
        converted(picture)
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
