"""The names of a network's float weights in a state dict: of the plain, the fused, and the prepared (QAT) model."""

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

# Modules that torch.ao adds to a model: observers and fake quantization, which have no float weights.
_OBSERVERS = re.compile(
    r"(^|\.)(activation_post_process(_\d+)?|activation_pre_process|weight_fake_quant|bias_fake_quant|weight_post_process"
    r"|[a-z_]*fake_quant[a-z_]*|[a-z_]*observer[a-z_]*)(\.|$)"
)


@dataclass(frozen=True, kw_only=True)
class Naming:
    """A form of a network's state dict.

    Args:
        form: its name in messages.
        shapes: the keys of the model that loads the weights, with the shapes of their tensors.
        names: for each of those keys, the names that its tensor can have in a checkpoint, the most likely first.
    """

    form: str
    shapes: Shapes
    names: Mapping[str, tuple[str, ...]]


def shapes_of(state_dict: Mapping[str, Tensor]) -> Shapes:
    """Return the shape of each tensor."""
    return {key: tuple(value.shape) for key, value in state_dict.items()}


def is_optional(key: str) -> bool:
    """Return whether a checkpoint can lack this key: torch writes it since 0.4.1 and initializes it when it is missing."""
    return key.endswith("num_batches_tracked")


def observer_key(key: str) -> bool:
    """Return whether a key belongs to a module that `prepare` or `prepare_qat` added to a float model."""
    return _OBSERVERS.search(key) is not None


def plain_naming(model: nn.Module) -> Naming:
    """Return the naming of the plain network."""
    shapes = shapes_of(model.state_dict())
    return Naming(form="plain", shapes=shapes, names={key: (key,) for key in shapes})


def fused_naming(model: nn.Module, *, is_qat: bool) -> Naming:
    """Return the naming of a plain network after `fuse_model`.

    Names with and without the index that fusing adds to a layer are accepted, because libraries fuse different layers.
    """
    fused = copy.deepcopy(model).train(is_qat)
    cast("Any", fused).fuse_model(is_qat=is_qat)
    shapes = shapes_of(fused.state_dict())
    return Naming(form="fused", shapes=shapes, names={key: (key, *_with_or_without_index(key)) for key in shapes})


def training_naming(model: nn.Module) -> Naming:
    """Return the naming of a plain network after fusing for QAT or after `prepare_qat`.

    The BatchNorm is then a child of its convolution: `conv.1.weight` after fusing, `conv.bn.weight` after `prepare_qat`.
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
    """Return, for each BatchNorm, the convolution with which `fuse_model` fuses it, both by name."""
    fused: Any = copy.deepcopy(model).train()
    if hasattr(fused, "int8_scope"):
        fused.int8_scope = "whole"  # fuse the neck and head of a detector as well
    names = {module: name for name, module in fused.named_modules()}
    fused.fuse_model(is_qat=True)
    pairs = [module for module in fused.modules() if isinstance(module, ConvBn2d | ConvBnReLU2d)]
    return {names[norm]: names[convolution] for convolution, norm, *_ in pairs if norm in names and convolution in names}
