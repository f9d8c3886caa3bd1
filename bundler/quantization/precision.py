"""Float64 computation of everything that the integers of an INT8 network depend on.

In float32, the last bits of a sum depend on the order of its terms, which depends on the number of threads, the vector
instructions and the libraries of the machine. A weight halfway between two integers can then be rounded either way. In float64
these differences are about 2^29 times smaller than the distance between adjacent float32 values, to which results are rounded
at the end, so that every machine gets the same INT8 network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bundler.errors import BundlerError

__all__ = ["double_precision"]

# Torch's messages if a model converts activations to float32: "expected m1 and m2 to have the same dtype, but got: float !=
# double", "expected scalar type Double but found Float", "Input type (float) and bias type (double) should be the same".
_MIXED_DTYPES = re.compile(r"(?i)(dtype|type).*\b(float|double)\b.*\b(float|double)\b")


@contextmanager
def double_precision(model: nn.Module | None = None) -> Iterator[None]:
    """Convert a float32 model to float64, and make float64 torch's default dtype, while the block runs.

    Afterwards the model is float32 again. Its parameters and buffers then have new storage; tensors that shared the old
    storage keep their values.

    Raises:
        BundlerError: the model mixes float32 and float64.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    if model is not None:
        _convert(model, torch.float64)
    try:
        yield
    except RuntimeError as error:
        if not _MIXED_DTYPES.search(str(error)):
            raise
        raise BundlerError(
            f"{type(model).__name__} cannot be run in float64, which calibration requires: {str(error).splitlines()[0]}",
            next_step="In the model's `forward`, create tensors with the dtype of its input (`x.dtype`) instead of float32.",
        ) from error
    finally:
        torch.set_default_dtype(before)
        if model is not None:
            _convert(model, torch.float32)


def _convert(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert parameters and buffers; inference tensors stay such, and others trainable."""
    with torch.inference_mode(any(tensor.is_inference() for tensor in model.parameters())):
        model.to(dtype)
