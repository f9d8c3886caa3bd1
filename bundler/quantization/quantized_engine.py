"""Torch's quantized engine, set for the duration of the work and restored after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bundler.errors import BundlerError

__all__ = ["quantized_engine"]


@contextmanager
def quantized_engine(name: str) -> Iterator[None]:
    """Let torch compute INT8 with the engine `fbgemm` or `qnnpack` while the block runs.

    Raises:
        BundlerError: this build of torch does not have that engine.
    """
    if name not in torch.backends.quantized.supported_engines:
        have = ", ".join(torch.backends.quantized.supported_engines)
        raise BundlerError(
            f"this build of torch has no quantized engine {name!r} (it has: {have})",
            next_step="Build on an x86-64 or arm64 Linux machine with the torch of constraints.txt.",
        )
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
