"""Whether a pickled network computes what the one that is built does: keys and shapes say nothing of strides or activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from bundler.models.pickled_modules import PickledModule, pickled_modules

__all__ = ["differences"]

_NUMBERS = ("stride", "padding", "dilation", "groups", "eps", "kernel_size", "negative_slope", "ceil_mode", "padding_mode")
_COMPARED = (int, float, str, tuple)
_ACTIVATIONS = "torch.nn.modules.activation"


def differences(root: object, prefix: str, model: nn.Module) -> list[str]:
    """Return what differs between the modules below a pickled module and those of `model`: strides, eps, activations.

    Args:
        root: the pickled module.
        prefix: of the network in it, with its dot at the end.
        model: what is built.

    Raises:
        UnreadableError: the pickled modules hold each other too often.
    """
    pickled = pickled_modules(root)
    found: list[str] = []
    for name, own in model.named_modules():
        other = pickled.get((prefix + name).removesuffix("."))
        if other is None:
            continue
        found += _other_numbers(name, own, other)
        activations = set(_activations(pickled, (prefix + name).removesuffix("."), other.children))
        built = {_name(child) for child in own.children() if _is_activation(child)}
        if more := activations - built:
            expected = " and ".join(sorted(built)) or "no activation"
            found.append(f"{name or 'the network'} has {' and '.join(sorted(more))} where {expected} is built")
    return found


def _other_numbers(name: str, own: nn.Module, other: PickledModule) -> Iterable[str]:
    if next(own.children(), None) is not None:
        return
    for key in _NUMBERS:
        given = other.attributes.get(key)
        expected = getattr(own, key, None)
        if (
            isinstance(given, int | float | str | tuple)
            and isinstance(expected, int | float | str | tuple)
            and given != expected
        ):
            yield f"{name} has {key} {given} where {expected} is built"


def _activations(pickled: Mapping[str, PickledModule], path: str, children: Iterable[str]) -> Iterable[str]:
    for child in children:
        module = pickled.get(f"{path}.{child}" if path else child)
        if module is not None and module.kind.module == _ACTIVATIONS:
            yield module.kind.name


def _is_activation(module: nn.Module) -> bool:
    quantizable = type(module).__name__.startswith("Quantizable") and hasattr(nn, _name(module))
    return type(module).__module__ == _ACTIVATIONS or quantizable


def _name(module: nn.Module) -> str:
    return type(module).__name__.removeprefix("Quantizable")
