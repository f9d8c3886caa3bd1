"""Lets torchvision import beside a CPU build of torch.

The torchvision of the package registry is linked against CUDA. Beside a CPU torch its compiled operators do not load, and
`import torchvision` ends in `operator torchvision::nms does not exist`, because two of its modules register fake kernels for
operators that are not there. The classification models use neither operator, so declaring both schemas is enough.
Model files import this module before torchvision.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

__all__ = ["DECLARED"]


def _compiled_operators_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            return False
    return hasattr(torch.ops.torchvision, "nms")


def _declare() -> torch.library.Library:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


#: Kept for the life of the process: the schemas go when their library does. None where the real operators are there.
DECLARED: torch.library.Library | None = None if _compiled_operators_load() else _declare()
