"""Cross-layer equalization: channels between layers are scaled so that one scale fits all channels of an activation.

Nagel et al. 2019 (arXiv:1906.04721), section 4.1: if only a ReLU is between two layers, a channel can be divided by a positive
factor in the first layer and multiplied by it in the second. Additions and pooling preserve such factors, so that all layers
that write to a residual connection, and all that read from it, form a group with one factor per channel. A BatchNorm that reads
concatenated tensors, as in a DenseNet, compensates the factors. They are computed from activations of calibration images and
from the weights of the reading layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from bundler.quantization.precision import double_precision

__all__ = ["EqualizationGroup", "equalization_groups", "equalize_channels"]

HOMOGENEOUS = {  # operators with f(s x) = s f(x) for s > 0, channel by channel
    "relu",
    "leaky_relu",
    "add",
    "mean",
    "max_pool2d_with_indices",
    "avg_pool2d",
    "_adaptive_avg_pool2d",
    "view",
    "_unsafe_view",
}
MIN_SIZE = 1e-3  # of a channel, relative to the largest: values outside of the calibration images must not be clipped

Writer = nn.Conv2d | nn.BatchNorm2d
Product = nn.Conv2d | nn.Linear


@dataclass(frozen=True, kw_only=True)
class NormPart:
    """The channels of a BatchNorm, in eval mode, that read one of several concatenated tensors; they begin with `first`."""

    norm: nn.BatchNorm2d
    first: int

    def multiply(self, factors: Tensor) -> None:
        """Compensate, in place, that the input channels were divided by these positive factors [C]."""
        channels = slice(self.first, self.first + len(factors))
        mean, variance = cast("Tensor", self.norm.running_mean)[channels], cast("Tensor", self.norm.running_var)[channels]
        before = variance + self.norm.eps
        mean.div_(factors)
        variance.copy_((before / factors.square() - self.norm.eps).clamp(min=0))
        # The product is 1 unless the variance was clamped, because epsilon alone exceeds the scaled variance.
        self.norm.weight.data[channels] *= factors * ((variance + self.norm.eps) / before).sqrt()


Reader = Product | NormPart


@dataclass(frozen=True, kw_only=True)
class EqualizationGroup:
    """The layers that write and read tensors whose channels have common factors.

    Args:
        writers: of a convolution with a BatchNorm, the BatchNorm.
        readers: convolutions and linear layers; or only BatchNorms, if the tensors are concatenated.
        operators: those whose results will be quantized, as indices in the order of execution.
    """

    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]
    operators: tuple[int, ...]

    @property
    def products(self) -> tuple[Product, ...]:
        return tuple(reader for reader in self.readers if not isinstance(reader, NormPart))

    def divide(self, factors: Tensor) -> None:
        """Divide the channels in the writers by positive factors [C], and multiply them in the readers, in place."""
        for writer in self.writers:
            writer.weight.data.div_(factors.reshape(-1, *[1] * (writer.weight.ndim - 1)))
            if writer.bias is not None:
                writer.bias.data.div_(factors)
        for reader in self.readers:
            if isinstance(reader, NormPart):
                reader.multiply(factors)
            else:
                weight = _by_input_channel(reader)
                weight.mul_(factors.reshape(weight.shape[0], 1, -1, 1, 1))


def equalize_channels(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Equalize a float model in place, before it is fused; its outputs stay the same up to float rounding.

    Everything is computed in float64, and the weights are rounded to float32 at the end.

    Args:
        model: in eval mode.
        batches: normalized images, float32 [N, 3, H, W], from which the size of each channel is measured.

    Returns:
        The number of groups of layers that were equalized.
    """
    images = list(batches)
    with double_precision(model):
        groups = equalization_groups(model, images[0][:1].double())
        sizes = _measure(model, images, {index for group in groups for index in group.operators})
        for group in groups:
            group.divide(_factors(group, sizes))
    return len(groups)


def equalization_groups(model: nn.Module, sample: Tensor) -> tuple[EqualizationGroup, ...]:
    """Return the groups of a float model, found by recording which results are inputs of which operators.

    See docs/decisions/recorded-equalization-groups.md for the comparison with a traced graph.

    Args:
        model: in eval mode.
        sample: a normalized image, float32 or float64 [1, 3, H, W], as the model.
    """
    dataflow = _Dataflow(model)
    with torch.no_grad(), dataflow:
        outputs = model(sample)
    return dataflow.groups(outputs)


class _Dataflow(TorchDispatchMode):
    """Records the operators of a model and their inputs while it runs, and joins those whose results have common factors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._layers: dict[int, nn.Module] = {
            module.weight.data_ptr(): module
            for module in model.modules()
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear) and module.weight is not None
        }
        self._written_by = WeakTensorKeyDictionary()  # tensor: index of the operator that wrote it last
        self._joined: list[int] = []  # union-find: for each operator, itself or the index of another one of its group
        self._names: list[str] = []
        self._written: dict[int, nn.Module] = {}
        self._read: list[tuple[int, nn.Module | NormPart]] = []
        self._parts: dict[
            int, list[tuple[int, int]]
        ] = {}  # of a concatenation: the operators of its inputs, and their first channels
        self._readers: dict[int, list[int]] = {}
        self._fixed: set[int] = set()  # operators whose results cannot be scaled

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        index, name = len(self._names), func.overloadpacket.__name__.rstrip("_")
        tensors = [item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
        layer = next((self._layers[item.data_ptr()] for item in tensors if item.data_ptr() in self._layers), None)
        sources = [self._written_by[item] for item in tensors if item in self._written_by]
        shapes = {item.shape[:2] for item in tensors if item in self._written_by}
        self._names.append(name)
        self._joined.append(index)
        for source in sources:
            self._readers.setdefault(source, []).append(index)
        results = func(*args, **(kwargs or {}))
        written = [item for item in tree_leaves(results) if isinstance(item, Tensor)]
        if layer is not None:
            if name == "t":  # of a Linear's weight
                return results
            self._written[index] = layer
            for source in sources:
                self._read_by(layer, source)
        elif name == "cat" and len(sources) == len(tensors) and args[1:] == (1,) and self._parts.keys().isdisjoint(sources):
            firsts = accumulate((item.shape[1] for item in tensors), initial=0)
            self._parts[index] = list(zip(sources, firsts, strict=False))
        elif written and self._is_homogeneous(name, tensors, sources, shapes | {written[0].shape[:2]}):
            for source in sources:
                self._joined[self._root(source)] = index
            if name == "add" and len(sources) != 2:
                self._fixed.add(index)
        else:
            self._fixed.update((*sources, index))
        for item in written:
            self._written_by[item] = index
        return results

    def _is_homogeneous(self, name: str, tensors: list[Tensor], sources: list[int], shapes: set[torch.Size]) -> bool:
        """Return whether the result of an operator has the factors of all its inputs, which have its own [N, C]."""
        return (
            name in HOMOGENEOUS and len(sources) == len(tensors) and len(shapes) == 1 and self._parts.keys().isdisjoint(sources)
        )

    def _read_by(self, layer: nn.Module, source: int) -> None:
        if source not in self._parts:
            self._read.append((source, layer))
        elif isinstance(layer, nn.BatchNorm2d) and layer.track_running_stats:
            self._read += [(part, NormPart(norm=layer, first=first)) for part, first in self._parts[source]]
        else:
            self._fixed.add(source)

    def groups(self, outputs: Any) -> tuple[EqualizationGroup, ...]:
        """Return the groups that can be equalized; the outputs of the model are not changed."""
        results = [item for item in tree_leaves(outputs) if isinstance(item, Tensor)]
        self._fixed.update(self._written_by[item] for item in results if item in self._written_by)
        self._fixed.update(part for index in self._fixed & self._parts.keys() for part, _ in self._parts[index])
        fixed = {self._root(index) for index in self._fixed}
        layers = [*self._written.values()]
        found = []
        for root in {self._root(index) for index in self._written}:
            members = [index for index in range(len(self._names)) if self._root(index) == root]
            writers = [self._written[index] for index in members if index in self._written]
            readers = [layer for source, layer in self._read if self._root(source) == root]
            # A layer that is executed more than once has the same weights in several places.
            run = [*writers, *(reader.norm if isinstance(reader, NormPart) else reader for reader in readers)]
            once = all(layers.count(layer) == 1 for layer in run)
            norms = sum(isinstance(reader, NormPart) for reader in readers)
            if root in fixed or not readers or not once or 0 < norms < len(readers):
                continue
            if all(isinstance(layer, Writer) for layer in writers) and all(isinstance(layer, Reader) for layer in readers):
                quantized = tuple(index for index in members if not self._is_fused(index))
                found.append(EqualizationGroup(writers=tuple(writers), readers=tuple(readers), operators=quantized))  # type: ignore[arg-type]
        return tuple(sorted(found, key=lambda group: group.operators))

    def _is_fused(self, index: int) -> bool:
        """Return whether a ReLU is the only consumer of the result, so that only the result of the ReLU will be quantized."""
        readers = self._readers.get(index, [])
        return len(readers) == 1 and self._names[readers[0]] == "relu"

    def _root(self, index: int) -> int:
        while self._joined[index] != index:
            index = self._joined[index]
        return index


class _Sizes(TorchDispatchMode):
    """Records the largest magnitude of each channel in the results of some operators, over all runs of the model."""

    def __init__(self, operators: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._operators = operators
        self._next = 0
        self.largest: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        if self._next in self._operators:
            result = next(item for item in tree_leaves(results) if isinstance(item, Tensor))
            size = result.abs().transpose(0, 1).flatten(1).amax(1)
            before = self.largest.get(self._next)
            self.largest[self._next] = size if before is None else torch.maximum(size, before)
        self._next += 1
        return results

    def begin(self) -> None:
        self._next = 0


def _measure(model: nn.Module, batches: Sequence[Tensor], operators: set[int]) -> dict[int, Tensor]:
    sizes = _Sizes(operators)
    for batch in batches:
        images = batch.double()
        sizes.begin()
        with torch.no_grad(), sizes:
            model(images)
    return sizes.largest


def _factors(group: EqualizationGroup, sizes: dict[int, Tensor]) -> Tensor:
    """Return the factors [C]: the root of written size over read size of each channel, with a geometric mean of 1.

    Concatenated tensors, which BatchNorms read, are scaled to a maximum of 1: the factors of a BatchNorm cost no accuracy.
    """
    if not group.products:
        largest = torch.stack([sizes[index] for index in group.operators]).amax(0)
        return largest.clamp(min=max(MIN_SIZE * float(largest.amax()), torch.finfo(torch.float32).tiny))
    written = torch.stack([_relative(sizes[index]) for index in group.operators]).amax(0)
    read = torch.stack([_read_size(reader) for reader in group.products]).amax(0)
    exponents = (written.log2() - read.log2()) / 2
    return torch.exp2(exponents - exponents.mean())


def _relative(sizes: Tensor) -> Tensor:
    """Return sizes relative to the largest, MIN_SIZE at least."""
    return (sizes / sizes.amax().clamp(min=torch.finfo(torch.float32).tiny)).clamp(min=MIN_SIZE)


def _read_size(reader: Product) -> Tensor:
    """Return the largest weight of each input channel, relative to the largest weight of each output channel."""
    weight = _by_input_channel(reader).abs()
    largest = weight.amax((2, 3, 4), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return _relative((weight / largest).amax((1, 3, 4)).flatten())


def _by_input_channel(layer: Product) -> Tensor:
    """Return a view of the weights, [groups, outputs per group, inputs per group, kH, kW]."""
    weight = layer.weight.data
    if isinstance(layer, nn.Linear):
        return weight.view(1, *weight.shape, 1, 1)
    return weight.view(layer.groups, -1, *weight.shape[1:])
