"""Observers before saturating activations: observed ranges are clamped to the interval where the activation is not constant.

ReLU6 is constant above 6 and below 0, Hardswish below -3, Hardsigmoid outside of [-3, 3]. With the range of the preceding layer
clamped to that interval, all 256 values are used within it, and the quantization itself clips.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.ao.quantization import QConfig

from bundler.quantization.quantizable_modules import QuantizableHardswish

__all__ = ["Chained", "QuantizableReLU6", "clip_observers"]

Bounds = tuple[float | None, float | None]

_BOUNDS: dict[type[nn.Module], Bounds] = {
    nn.ReLU6: (0.0, 6.0),
    QuantizableHardswish: (-3.0, None),
    nn.Hardsigmoid: (-3.0, 3.0),
}


@runtime_checkable
class Chained(Protocol):
    """A module, not a Sequential, with children that are executed in sequence.

    `chain` has their names, in order: each reads the result of the one before it, and nothing else reads that result.
    """

    chain: ClassVar[tuple[str, ...]]


class QuantizableReLU6(nn.ReLU6):
    """ReLU6 that returns a quantized tensor unchanged if its range ends at 6.

    If all 256 values are used, the scale of the clamped observer is at most 6/255, and the quantization of the preceding
    convolution has clipped already. If the upper half of the values is unused (fbgemm's 7-bit activations), values above 6
    exist and are clipped as integers. Torch's qnnpack kernel returns wrong values for a bound outside of the range of the
    tensor, so it is not called when it is not needed.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_quantized:
            return nn.functional.hardtanh(x, 0.0, 6.0)
        if round(6.0 / x.q_scale()) + x.q_zero_point() >= 255:
            return x
        clipped: Tensor = torch.ops.quantized.relu6(x, inplace=False)
        return clipped


class _Clipped(nn.Module):
    """Mixin for an observer or fake quantization that clamps its input first.

    The activation that follows gives the same result for the clamped tensor, bit for bit, so that a prepared model still
    computes the same values as the float model.
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
    """Clamp the observer of each convolution or linear layer whose only consumer is a saturating activation, in place.

    The layer must precede the activation in a `Sequential` or a `chain`, with nothing but the `Identity` modules of fusing
    between them.

    Args:
        model: fused and with qconfigs, before `prepare`.
    """
    default = cast("QConfig", model.qconfig)
    for parent in model.modules():
        layers = [(name, layer) for name, layer in _chain(parent) if type(layer) is not nn.Identity]
        for (_, layer), (name, activation) in pairwise(layers):
            if type(activation) in _BOUNDS and isinstance(layer, nn.Conv2d | nn.Linear | torch.ao.nn.intrinsic.ConvBn2d):
                layer.qconfig = _clipped(getattr(layer, "qconfig", default), _BOUNDS[type(activation)])  # type: ignore[assignment]
                if type(activation) is nn.ReLU6:
                    setattr(parent, name, QuantizableReLU6())


def _chain(parent: nn.Module) -> list[tuple[str, nn.Module]]:
    if isinstance(parent, nn.Sequential):
        return list(parent.named_children())
    if isinstance(parent, Chained):
        return [(name, cast("nn.Module", getattr(parent, name))) for name in parent.chain]
    return []
