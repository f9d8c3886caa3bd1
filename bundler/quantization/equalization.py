"""Channels of neighbouring convolutions brought to one size, so that one scale fits them all (cross-layer equalization).

Nagel et al. 2019 (arXiv:1906.04721), section 4.1: where only a ReLU lies between two layers, a channel may be divided by a
number in front of it and multiplied behind it. Here they are powers of two, which change no bit of what a network computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Pair", "channel_pairs", "equalize_channels"]

ROUNDS = 8  # until nothing changes: a layer's sizes change with those of its neighbours

Producer = nn.Conv2d | nn.BatchNorm2d


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two layers between which only a ReLU lies, or nothing; with a BatchNorm, it stands for the convolution before it."""

    producer: Producer
    consumer: nn.Conv2d


def equalize_channels(model: nn.Module, sample: Tensor) -> int:
    """Equalize a float model in place, before its layers are fused; it computes what it did, bit for bit.

    Args:
        model: in eval mode. Where its BatchNorms are folded already, the weights must tell how large a channel becomes.
        sample: a picture to find out with which layers follow each other, float32 [1, 3, H, W].

    Returns:
        How many channels were changed.
    """
    pairs = channel_pairs(model, sample)
    changed: dict[tuple[int, int], None] = {}
    for _ in range(ROUNDS):
        moved = False
        for index, pair in enumerate(pairs):
            factors = _factors(pair)
            for channel in torch.nonzero(factors != 1).flatten().tolist():
                changed[index, channel] = None
                moved = True
            _divide(pair.producer, factors)
            _by_input_channel(pair.consumer).mul_(factors.reshape(pair.consumer.groups, 1, -1, 1, 1))
        if not moved:
            break
    return len(changed)


def channel_pairs(model: nn.Module, sample: Tensor) -> tuple[Pair, ...]:
    """Return the pairs of a float model in eval mode, found by watching which results reach which operator."""
    watch = _Dataflow(model)
    with torch.no_grad(), watch:
        model(sample)
    return watch.pairs()


class _Dataflow(TorchDispatchMode):
    """Records each operator with what it reads, while a model runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._layers: dict[int, nn.Module] = {
            module.weight.data_ptr(): module
            for module in model.modules()
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d) and module.weight is not None
        }
        self._kept: list[Any] = []  # a tensor that is freed would give its identity to another
        self._written_by: dict[int, int] = {}
        self._read_by: dict[int, list[int]] = {}
        self._operators: list[tuple[str, nn.Module | None]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        index = len(self._operators)
        tensors = [item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
        layer = next((self._layers[item.data_ptr()] for item in tensors if item.data_ptr() in self._layers), None)
        self._operators.append((func.overloadpacket.__name__.rstrip("_"), layer))
        for item in tensors:
            if id(item) in self._written_by:
                self._read_by.setdefault(self._written_by[id(item)], []).append(index)
        results = func(*args, **(kwargs or {}))
        self._kept += [tensors, results]
        for item in tree_leaves(results):
            if isinstance(item, Tensor):
                self._written_by[id(item)] = index
        return results

    def pairs(self) -> tuple[Pair, ...]:
        found = []
        for index, (_, producer) in enumerate(self._operators):
            reader = self._only_reader(index)
            if reader is not None and self._operators[reader][0] == "relu":
                reader = self._only_reader(reader)
            consumer = None if reader is None else self._operators[reader][1]
            if isinstance(producer, nn.Conv2d | nn.BatchNorm2d) and isinstance(consumer, nn.Conv2d):
                found.append(Pair(producer=producer, consumer=consumer))
        # A layer that runs more than once has more than one neighbour.
        layers = [layer for _, layer in self._operators]
        return tuple(pair for pair in found if layers.count(pair.producer) == layers.count(pair.consumer) == 1)

    def _only_reader(self, index: int) -> int | None:
        readers = self._read_by.get(index, [])
        return readers[0] if len(readers) == 1 else None


def _factors(pair: Pair) -> Tensor:
    """Return by what each channel is divided in front, a power of two: √(how large it is there / how large behind)."""
    ratio = _size_in_front(pair.producer) / _size_behind(pair.consumer)
    ratio = torch.where(ratio.isfinite() & (ratio > 0), ratio, 1.0).log2()
    return torch.exp2(((ratio - ratio.mean()) / 2).round())


def _size_in_front(producer: Producer) -> Tensor:
    """Return how large each channel becomes: of a BatchNorm's result, three standard deviations and the mean."""
    weight = producer.weight.detach().abs()
    if isinstance(producer, nn.BatchNorm2d):
        return 3 * weight + producer.bias.detach().abs()
    return weight.flatten(1).amax(1)


def _size_behind(consumer: nn.Conv2d) -> Tensor:
    """Return the largest weight of each input channel, of output channels that have one scale each and so count alike."""
    weight = _by_input_channel(consumer).abs()
    largest = weight.amax((2, 3, 4), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return (weight / largest).amax((1, 3, 4)).flatten()


def _divide(producer: Producer, factors: Tensor) -> None:
    weight = producer.weight.data
    weight.div_(factors.reshape(-1, *[1] * (weight.ndim - 1)))
    if producer.bias is not None:
        producer.bias.data.div_(factors)


def _by_input_channel(convolution: nn.Conv2d) -> Tensor:
    """Return a view of the weights, [groups, outputs of a group, inputs of a group, kH, kW]."""
    weight = convolution.weight.data
    return weight.view(convolution.groups, -1, *weight.shape[1:])
