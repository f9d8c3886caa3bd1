"""Names that older releases of torchvision, and timm, give the weights of the same networks."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bundler.quantization.weight_names import Naming, Shapes

__all__ = ["other_namings"]


def other_namings(name: str, shapes: Shapes) -> Iterable[Naming]:
    """Yield the forms in which others save the network `name`, whose plain state dict has `shapes`."""
    if name.startswith("densenet"):  # from before torch banned dots in names
        older = {key: re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", key) for key in shapes}
        yield Naming(form="older torchvision", shapes=shapes, names={key: (other,) for key, other in older.items()})
