"""Activations that clip: the observer in front of one sees only what the activation tells apart.

ReLU6 answers the same for everything above 6 and below 0, Hardswish for everything below -3, Hardsigmoid beyond ±3. With the
observed range cut there, all 256 values lie where they make a difference, and the quantization itself does the clipping.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.ao.quantization import QConfig

from bundler.quantization.activations import QuantizableHardswish

__all__ = ["Chained", "QuantizableReLU6", "clip_observers"]

Bounds = tuple[float | None, float | None]

_BOUNDS: dict[type[nn.Module], Bounds] = {
    nn.ReLU6: (0.0, 6.0),
    QuantizableHardswish: (-3.0, None),
    nn.Hardsigmoid: (-3.0, 3.0),
}


@runtime_checkable
class Chained(Protocol):
    """A module that is no Sequential and names those of its children that read each other's result and nobody else's."""

    chain: ClassVar[tuple[str, ...]]


class QuantizableReLU6(nn.ReLU6):
    """ReLU6 that costs nothing on a quantized tensor whose range ends at 6.

    With all 256 values in use, the clipped observer's scale is at most 6/255 and the convolution's own quantization has clipped
    already. Where the top of the range is left free (fbgemm's 7-bit activations), values above 6 exist and are clipped here, in
    integers. Torch's qnnpack kernel answers wrongly for a bound beyond the range, so the redundant call is avoided.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_quantized:
            return nn.functional.hardtanh(x, 0.0, 6.0)
        if round(6.0 / x.q_scale()) + x.q_zero_point() >= 255:
            return x
        clipped: Tensor = torch.ops.quantized.relu6(x, inplace=False)
        return clipped


class _Clipped(nn.Module):
    """Clips before the observer or fake quantization that it is mixed into.

    The activation behind it answers the same with and without, bit for bit, so a prepared model still computes what the float
    model does.
    """

    bounds: ClassVar[Bounds]

    def forward(self, activations: Tensor) -> Tensor:
        observed: Tensor = super().forward(activations.clamp(*self.bounds))
        return observed


def _clipped(qconfig: QConfig, bounds: Bounds) -> QConfig:
    factory: Any = qconfig.activation
    observer, arguments = factory.p.func, factory.p.keywords
    clipped: Any = type(f"Clipped{observer.__name__}", (_Clipped, observer), {"bounds": bounds})
    return QConfig(activation=clipped.with_args(**arguments), weight=qconfig.weight)


def clip_observers(model: nn.Module) -> None:
    """Clip the observer of each convolution or linear layer whose only reader clips, in place.

    Such a layer stands in a `Sequential` or a `chain` in front of its reader, with nothing but what fusing left (`Identity`)
    between them. Call it on a fused model that has its qconfigs, before `prepare`.
    """
    whole = cast("QConfig", model.qconfig)
    for parent in model.modules():
        layers = [(name, layer) for name, layer in _chain(parent) if type(layer) is not nn.Identity]
        for (_, layer), (name, reader) in pairwise(layers):
            if type(reader) in _BOUNDS and isinstance(layer, nn.Conv2d | nn.Linear | torch.ao.nn.intrinsic.ConvBn2d):
                layer.qconfig = _clipped(getattr(layer, "qconfig", whole), _BOUNDS[type(reader)])  # type: ignore[assignment]
                if type(reader) is nn.ReLU6:
                    setattr(parent, name, QuantizableReLU6())


def _chain(parent: nn.Module) -> list[tuple[str, nn.Module]]:
    if isinstance(parent, nn.Sequential):
        return list(parent.named_children())
    if isinstance(parent, Chained):
        return [(name, cast("nn.Module", getattr(parent, name))) for name in parent.chain]
    return []
