"""Double precision for whatever decides a bit of an INT8 network, so that the CPU and the number of threads do not.

Sums in float32 differ in their last bits with the order of the summands, which depends on the number of threads, the vector
instructions and the libraries of a machine; a weight in the middle between two integers is then rounded either way. In
float64 the same differences are eight orders of magnitude smaller than those between two float32 values, to which every
result is rounded at the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bundler.errors import BundlerError

__all__ = ["double_precision"]

# Of a model that converts its activations to float32 by itself: "expected m1 and m2 to have the same dtype, but got: float !=
# double", "expected scalar type Double but found Float", "Input type (float) and bias type (double) should be the same".
_MIXED = re.compile(r"(?i)(dtype|type).*\b(float|double)\b.*\b(float|double)\b")


@contextmanager
def double_precision(model: nn.Module | None = None) -> Iterator[None]:
    """Let a float32 model, and every tensor that is made without a type, be float64 while the block runs.

    Afterwards the model is float32 again. Its parameters and buffers get new storage; those that were handed out before keep
    their values.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    if model is not None:
        _convert(model, torch.float64)
    try:
        yield
    except RuntimeError as error:
        if not _MIXED.search(str(error)):
            raise
        raise BundlerError(
            f"{type(model).__name__} cannot be run in float64, in which INT8 is calibrated: {str(error).splitlines()[0]}",
            next_step="In the model's `forward`, make tensors with the type of its input (`x.dtype`) instead of float32.",
        ) from error
    finally:
        torch.set_default_dtype(before)
        if model is not None:
            _convert(model, torch.float32)


def _convert(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert in the mode in which the tensors were made: of the inference mode, they could not be trained."""
    with torch.inference_mode(any(tensor.is_inference() for tensor in model.parameters())):
        model.to(dtype)
