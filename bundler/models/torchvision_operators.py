"""Make torchvision importable with a CPU build of torch; model files import this module before torchvision.

The torchvision wheel on PyPI is linked against CUDA. With a CPU build of torch its compiled operators do not load, and
`import torchvision` fails with `operator torchvision::nms does not exist`, because two of its modules register fake kernels for
these operators. The classification models use neither operator, so that declaring both schemas is sufficient.
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


#: Kept alive because deleting the library removes the schemas. None if the compiled operators are available.
DECLARED: torch.library.Library | None = None if _compiled_operators_load() else _declare()
