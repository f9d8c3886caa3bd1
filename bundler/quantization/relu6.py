"""ReLU6 for free: the observer of the convolution before it sees what ReLU6 lets through."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import QConfig

__all__ = ["QuantizableReLU6", "cap_relu6"]


class QuantizableReLU6(nn.ReLU6):
    """ReLU6 that costs nothing on a quantized tensor whose range ends at 6.

    With all 256 values in use, the capped observer's scale is at most 6/255 and the convolution's own quantization has clipped
    already. Where the top of the range is left free (fbgemm's 7-bit activations), values above 6 exist and are clipped here, in
    integers. Torch's qnnpack kernel answers wrongly for a bound beyond the range, so the redundant call is avoided.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_quantized:
            return super().forward(x)
        if round(6.0 / x.q_scale()) + x.q_zero_point() >= torch.iinfo(torch.uint8).max:
            return x
        clipped: Tensor = torch.ops.quantized.relu6(x, inplace=False)
        return clipped


class _CappedAtSix(nn.Module):
    """Applies ReLU6 before the observer or fake quantization that it is mixed into.

    The range that is recorded then lies within [0, 6] with zero point 0. Applying ReLU6 twice changes no bit, so a prepared
    model still computes what the float model does.
    """

    def forward(self, activations: Tensor) -> Tensor:
        observed: Tensor = super().forward(nn.functional.relu6(activations))
        return observed


def _capped(qconfig: QConfig) -> QConfig:
    factory: Any = qconfig.activation
    observer, arguments = factory.p.func, factory.p.keywords
    capped: Any = type(f"{observer.__name__}CappedAtSix", (_CappedAtSix, observer), {})
    return QConfig(activation=capped.with_args(**arguments), weight=qconfig.weight)


def cap_relu6(model: nn.Module, qconfig: QConfig) -> None:
    """Cap the observer of each convolution whose only reader is a ReLU6, in place.

    Such a convolution stands in a `Sequential` in front of its ReLU6, with nothing but what fusing left (`Identity`) between
    them. Call it on a fused model, before `prepare`.
    """
    capped = _capped(qconfig)
    for sequence in model.modules():
        if not isinstance(sequence, nn.Sequential):
            continue
        layers = [(name, layer) for name, layer in sequence.named_children() if type(layer) is not nn.Identity]
        for (_, layer), (name, reader) in pairwise(layers):
            if isinstance(layer, nn.Conv2d | torch.ao.nn.intrinsic.ConvBn2d) and type(reader) is nn.ReLU6:
                layer.qconfig = capped  # type: ignore[assignment]
                setattr(sequence, name, QuantizableReLU6())
