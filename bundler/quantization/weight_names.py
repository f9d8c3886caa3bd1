"""Under which names a network's float weights are saved: plain, fused, or prepared for quantization-aware training."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.ao.nn.intrinsic import ConvBn2d, ConvBnReLU2d

__all__ = ["Naming", "Shapes", "fused_naming", "is_optional", "observer_key", "plain_naming", "shapes_of", "training_naming"]

Shapes = dict[str, tuple[int, ...]]

# What torch.ao adds to a state dict: observers and fake quantization, which have no float weights.
_OBSERVERS = re.compile(
    r"(^|\.)(activation_post_process(_\d+)?|activation_pre_process|weight_fake_quant|bias_fake_quant|weight_post_process"
    r"|[a-z_]*fake_quant[a-z_]*|[a-z_]*observer[a-z_]*)(\.|$)"
)


@dataclass(frozen=True, kw_only=True)
class Naming:
    """A form of a network's state dict.

    Args:
        form: what messages call it.
        shapes: of the keys that the model parser loads.
        names: for each of those keys, the names that its tensor may have in a file, the likeliest first.
    """

    form: str
    shapes: Shapes
    names: Mapping[str, tuple[str, ...]]


def shapes_of(state_dict: Mapping[str, Tensor]) -> Shapes:
    return {key: tuple(value.shape) for key, value in state_dict.items()}


def is_optional(key: str) -> bool:
    """Say whether a checkpoint may lack a key: torch writes it since 0.4.1, and fills it in for older ones by itself."""
    return key.endswith("num_batches_tracked")


def observer_key(key: str) -> bool:
    """Say whether a key belongs to what `prepare` and `prepare_qat` add to a float model."""
    return _OBSERVERS.search(key) is not None


def plain_naming(model: nn.Module) -> Naming:
    """Return the form in which the plain network is saved."""
    shapes = shapes_of(model.state_dict())
    return Naming(form="plain", shapes=shapes, names={key: (key,) for key in shapes})


def fused_naming(model: nn.Module, *, is_qat: bool) -> Naming:
    """Return the form in which a copy of a plain network is saved after `fuse_model`.

    A layer that is fused with its activation has an index behind its name, and libraries differ in what they fuse.
    """
    twin = copy.deepcopy(model).train(is_qat)
    cast("Any", twin).fuse_model(is_qat=is_qat)
    shapes = shapes_of(twin.state_dict())
    return Naming(form="fused", shapes=shapes, names={key: (key, *_with_or_without_index(key)) for key in shapes})


def training_naming(model: nn.Module) -> Naming:
    """Return the forms in which a plain network is saved once it is fused for training, or prepared for it (`prepare_qat`).

    The BatchNorm of a convolution is then below it: `conv.1.weight` when fused, `conv.bn.weight` when prepared.
    """
    shapes = shapes_of(model.state_dict())
    convolutions = _norms_with_convolutions(model)
    names = {}
    for key in shapes:
        module, _, name = key.rpartition(".")
        own = (key, *_with_or_without_index(key))
        if convolution := convolutions.get(module):
            own = (f"{convolution}.bn.{name}", f"{convolution}.1.{name}", *own)
        names[key] = own
    return Naming(form="prepared", shapes=shapes, names=names)


def _with_or_without_index(key: str) -> Iterable[str]:
    module, _, name = key.rpartition(".")
    yield f"{module}.0.{name}"
    if module.endswith(".0"):
        yield f"{module.removesuffix('.0')}.{name}"


def _norms_with_convolutions(model: nn.Module) -> dict[str, str]:
    """Return the convolution that `fuse_model` puts each BatchNorm behind, both by name."""
    twin: Any = copy.deepcopy(model).train()
    if hasattr(twin, "int8_scope"):
        twin.int8_scope = "whole"  # a detector's rest is fused as well then
    names = {module: name for name, module in twin.named_modules()}
    twin.fuse_model(is_qat=True)
    pairs = [module for module in twin.modules() if isinstance(module, ConvBn2d | ConvBnReLU2d)]
    return {names[norm]: names[convolution] for convolution, norm, *_ in pairs if norm in names and convolution in names}
