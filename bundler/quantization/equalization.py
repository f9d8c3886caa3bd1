"""Channels of neighbouring layers brought to one size, so that one scale fits them all (cross-layer equalization).

Nagel et al. 2019 (arXiv:1906.04721), section 4.1: where only a ReLU lies between two layers, a channel may be divided by a
number in front of it and multiplied behind it. Additions and pooling pass such a factor on as well, so that all that write to
a residual connection and all that read from it share theirs. Where concatenated tensors are normalised next, as in a DenseNet,
the BatchNorm takes the factor in. How large a channel becomes is measured, not guessed.
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

from bundler.quantization.precision import double_precision

__all__ = ["Stream", "channel_streams", "equalize_channels"]

PASSING = {  # operators with f(s x) = s f(x) for s > 0, channel by channel
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
SMALLEST = 1e-3  # of the largest channel: one that hardly shows in the pictures must have room on the device

Writer = nn.Conv2d | nn.BatchNorm2d
Product = nn.Conv2d | nn.Linear


@dataclass(frozen=True, kw_only=True)
class NormPart:
    """The channels from `first` on of a BatchNorm that reads concatenated tensors, in eval mode."""

    norm: nn.BatchNorm2d
    first: int

    def multiply(self, factors: Tensor) -> None:
        """Let the BatchNorm answer to channels that were divided by these factors as it did before; positive factors [C]."""
        channels = slice(self.first, self.first + len(factors))
        mean, variance = cast("Tensor", self.norm.running_mean)[channels], cast("Tensor", self.norm.running_var)[channels]
        before = variance + self.norm.eps
        mean.div_(factors)
        variance.copy_((before / factors.square() - self.norm.eps).clamp(min=0))
        # 1, but where the epsilon is larger than what the variance became
        self.norm.weight.data[channels] *= factors * ((variance + self.norm.eps) / before).sqrt()


Reader = Product | NormPart


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Tensors that share their channels' factors: the layers that write them, and the layers that read them.

    With a BatchNorm, it writes for the convolution before it. `operators` are those whose results will be quantized, numbered
    in the order of execution. Tensors that are concatenated with others have BatchNorms as readers, and no others.
    """

    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]
    operators: tuple[int, ...]

    @property
    def products(self) -> tuple[Product, ...]:
        return tuple(reader for reader in self.readers if not isinstance(reader, NormPart))

    def divide(self, factors: Tensor) -> None:
        """Divide each channel by its factor where it is written, and multiply where it is read; positive factors [C]."""
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
    """Equalize a float model in place, before its layers are fused; it computes what it did, up to rounding in float.

    Sizes and factors are computed in float64, and the weights rounded to float32 at the end.

    Args:
        model: in eval mode.
        batches: pictures that show how large each channel becomes, float32 [N, 3, H, W].

    Returns:
        How many streams were equalized.
    """
    pictures = list(batches)
    with double_precision(model):
        streams = channel_streams(model, pictures[0][:1].double())
        sizes = _measure(model, pictures, {index for stream in streams for index in stream.operators})
        for stream in streams:
            stream.divide(_factors(stream, sizes))
    return len(streams)


def channel_streams(model: nn.Module, sample: Tensor) -> tuple[Stream, ...]:
    """Return the streams of a float model in eval mode, found by watching which results reach which operator.

    Args:
        model: whose layers are watched.
        sample: a picture, float32 [1, 3, H, W].
    """
    watch = _Dataflow(model)
    with torch.no_grad(), watch:
        outputs = model(sample)
    return watch.streams(outputs)


class _Dataflow(TorchDispatchMode):
    """Records each operator with what it reads, while a model runs, and joins those whose results share their channels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._layers: dict[int, nn.Module] = {
            module.weight.data_ptr(): module
            for module in model.modules()
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear) and module.weight is not None
        }
        self._kept: list[Any] = []  # a tensor that is freed would give its identity to another
        self._written_by: dict[int, int] = {}
        self._joined: list[int] = []  # each operator's representative, or that one's
        self._names: list[str] = []
        self._written: dict[int, nn.Module] = {}
        self._read: list[tuple[int, nn.Module | NormPart]] = []
        self._parts: dict[int, list[tuple[int, int]]] = {}  # of a concatenation: what wrote each part, and its first channel
        self._readers: dict[int, list[int]] = {}
        self._fixed: set[int] = set()  # whose results' size matters to someone

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        index, name = len(self._names), func.overloadpacket.__name__.rstrip("_")
        tensors = [item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
        layer = next((self._layers[item.data_ptr()] for item in tensors if item.data_ptr() in self._layers), None)
        sources = [self._written_by[id(item)] for item in tensors if id(item) in self._written_by]
        shapes = {item.shape[:2] for item in tensors if id(item) in self._written_by}
        self._names.append(name)
        self._joined.append(index)
        for source in sources:
            self._readers.setdefault(source, []).append(index)
        results = func(*args, **(kwargs or {}))
        self._kept += [tensors, results]
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
        elif self._passes(name, tensors, sources, shapes | {written[0].shape[:2]}):
            for source in sources:
                self._joined[self._root(source)] = index
            if name == "add" and len(sources) != 2:
                self._fixed.add(index)
        else:
            self._fixed.update((*sources, index))
        for item in written:
            self._written_by[id(item)] = index
        return results

    def _passes(self, name: str, tensors: list[Tensor], sources: list[int], shapes: set[torch.Size]) -> bool:
        """Return whether an operator's result has the channels' factors of all that it reads, one shape [N, C] for all."""
        return name in PASSING and len(sources) == len(tensors) and len(shapes) == 1 and self._parts.keys().isdisjoint(sources)

    def _read_by(self, layer: nn.Module, source: int) -> None:
        if source not in self._parts:
            self._read.append((source, layer))
        elif isinstance(layer, nn.BatchNorm2d) and layer.track_running_stats:
            self._read += [(part, NormPart(norm=layer, first=first)) for part, first in self._parts[source]]
        else:
            self._fixed.add(source)

    def streams(self, outputs: Any) -> tuple[Stream, ...]:
        """Return what may be equalized; the model's outputs may not be."""
        self._fixed.update(self._written_by[id(item)] for item in tree_leaves(outputs) if id(item) in self._written_by)
        self._fixed.update(part for index in self._fixed & self._parts.keys() for part, _ in self._parts[index])
        fixed = {self._root(index) for index in self._fixed}
        layers = [*self._written.values()]
        found = []
        for root in {self._root(index) for index in self._written}:
            members = [index for index in range(len(self._names)) if self._root(index) == root]
            writers = [self._written[index] for index in members if index in self._written]
            readers = [layer for source, layer in self._read if self._root(source) == root]
            # A layer that runs more than once, with one set of weights, has more neighbours than these.
            run = [*writers, *(reader.norm if isinstance(reader, NormPart) else reader for reader in readers)]
            once = all(layers.count(layer) == 1 for layer in run)
            norms = sum(isinstance(reader, NormPart) for reader in readers)
            if root in fixed or not readers or not once or 0 < norms < len(readers):
                continue
            if all(isinstance(layer, Writer) for layer in writers) and all(isinstance(layer, Reader) for layer in readers):
                quantized = tuple(index for index in members if not self._is_fused(index))
                found.append(Stream(writers=tuple(writers), readers=tuple(readers), operators=quantized))  # type: ignore[arg-type]
        return tuple(sorted(found, key=lambda stream: stream.operators))

    def _is_fused(self, index: int) -> bool:
        """Return whether nothing but a ReLU sees the result."""
        readers = self._readers.get(index, [])
        return len(readers) == 1 and self._names[readers[0]] == "relu"

    def _root(self, index: int) -> int:
        while self._joined[index] != index:
            index = self._joined[index]
        return index


class _Sizes(TorchDispatchMode):
    """Keeps the largest magnitude of each channel in the results of some operators, over every run of the model."""

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
        pictures = batch.double()
        sizes.begin()
        with torch.no_grad(), sizes:
            model(pictures)
    return sizes.largest


def _factors(stream: Stream, sizes: dict[int, Tensor]) -> Tensor:
    """Return by what each channel is divided in front: the root of its size there over its size behind, and 1 on average."""
    if not stream.products:  # whatever is concatenated becomes 1 at most, and what a BatchNorm is multiplied with costs nothing
        largest = torch.stack([sizes[index] for index in stream.operators]).amax(0)
        return largest.clamp(min=max(SMALLEST * float(largest.amax()), torch.finfo(torch.float32).tiny))
    front = torch.stack([_share(sizes[index]) for index in stream.operators]).amax(0)
    behind = torch.stack([_size_behind(reader) for reader in stream.products]).amax(0)
    exponents = (front.log2() - behind.log2()) / 2
    return torch.exp2(exponents - exponents.mean())


def _share(sizes: Tensor) -> Tensor:
    """Return sizes as shares of the largest, and none below what leaves room."""
    return (sizes / sizes.amax().clamp(min=torch.finfo(torch.float32).tiny)).clamp(min=SMALLEST)


def _size_behind(reader: Product) -> Tensor:
    """Return the largest weight of each input channel, of output channels that have one scale each and so count alike."""
    weight = _by_input_channel(reader).abs()
    largest = weight.amax((2, 3, 4), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return _share((weight / largest).amax((1, 3, 4)).flatten())


def _by_input_channel(layer: Product) -> Tensor:
    """Return a view of the weights, [groups, outputs of a group, inputs of a group, kH, kW]."""
    weight = layer.weight.data
    if isinstance(layer, nn.Linear):
        return weight.view(1, *weight.shape, 1, 1)
    return weight.view(layer.groups, -1, *weight.shape[1:])
