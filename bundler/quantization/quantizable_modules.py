"""Modules that torch cannot quantize, or not well: a quantizable float form for `prepare`, and an INT8 form for `convert`.

These are SiLU, Hardswish, Mish and global average pooling. The float form computes the same values as torch's module and has
an observer for its result; the INT8 form is composed of operators that ONNX Runtime computes in INT8 or looks up in a table
(`bundler.quantization.symbolics`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import ObserverBase
from torch.ao.quantization.quantization_mappings import DEFAULT_STATIC_QUANT_MODULE_MAPPINGS

from bundler.quantization.batch_norm import QuantizableBatchNormReLU, QuantizedBatchNormReLU

__all__ = [
    "QuantizableGlobalAverage",
    "QuantizableHardswish",
    "QuantizableMish",
    "QuantizableOperator",
    "QuantizableSiLU",
    "QuantizedGlobalAverage",
    "QuantizedHardswish",
    "QuantizedMish",
    "QuantizedOperator",
    "QuantizedSiLU",
    "make_quantizable",
]


class QuantizableOperator(FloatFunctional):
    """A float operator whose result is observed. It is a FloatFunctional because `prepare` gives each of those an observer."""

    @staticmethod
    def compute(x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        observed: Tensor = self.activation_post_process(self.compute(x))
        return observed


class QuantizedOperator(nn.Module):
    """The converted form of a `QuantizableOperator`: quint8 input, and quint8 output with the observed scale and zero point.

    Both are Python numbers, which tracing and scripting keep as constants, and are saved in the state dict as `scale` (float32)
    and `zero_point` (int64), as those of torch's quantized modules are.
    """

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.scale = scale
        self.zero_point = zero_point

    @classmethod
    def from_float(cls, observed: QuantizableOperator) -> Self:
        scale, zero_point = cast("ObserverBase", observed.activation_post_process).calculate_qparams()
        return cls(float(scale), int(zero_point))

    def extra_repr(self) -> str:
        return f"scale={self.scale}, zero_point={self.zero_point}"

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}scale"] = torch.tensor(self.scale)
        destination[f"{prefix}zero_point"] = torch.tensor(self.zero_point)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, metadata: Any, strict: bool, missing: list[str], *others: Any
    ) -> None:
        scale, zero_point = (state_dict.pop(f"{prefix}{name}", None) for name in ("scale", "zero_point"))
        if scale is None:
            missing.append(f"{prefix}scale")
        else:
            self.scale = float(scale)
        if zero_point is None:
            missing.append(f"{prefix}zero_point")
        else:
            self.zero_point = int(zero_point)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *others)


class QuantizableSiLU(QuantizableOperator):
    """x · sigmoid(x) (Elfwing et al. 2017, arXiv:1702.03118)."""

    @staticmethod
    def compute(x: Tensor) -> Tensor:
        return nn.functional.silu(x)


class QuantizedSiLU(QuantizedOperator):
    def forward(self, x: Tensor) -> Tensor:
        # The scale 1/256 and zero point 0 of sigmoid's result are those of torch's kernel for hardsigmoid.
        gate = torch.ops.quantized.sigmoid(x, 1 / 256, 0)
        product: Tensor = torch.ops.quantized.mul(x, gate, self.scale, self.zero_point)
        return product


class QuantizableHardswish(QuantizableOperator):
    """x · hardsigmoid(x) (Howard et al. 2019, arXiv:1905.02244)."""

    @staticmethod
    def compute(x: Tensor) -> Tensor:
        return nn.functional.hardswish(x)


class QuantizedHardswish(QuantizedOperator):
    def forward(self, x: Tensor) -> Tensor:
        gate = nn.functional.hardsigmoid(x)
        product: Tensor = torch.ops.quantized.mul(x, gate, self.scale, self.zero_point)
        return product


class QuantizableMish(QuantizableOperator):
    """x · tanh(softplus(x)) (Misra 2019, arXiv:1908.08681)."""

    @staticmethod
    def compute(x: Tensor) -> Tensor:
        return nn.functional.mish(x)


class QuantizedMish(QuantizedOperator):
    """Torch has no quantized Mish: this dequantizes and quantizes; in ONNX it is a lookup table of 256 values."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.ops.edge_bundler.mish(x, self.scale, self.zero_point)
        return result


class QuantizableGlobalAverage(QuantizableOperator):
    """The mean of each channel, [N, C, H, W] to [N, C, 1, 1].

    Torch's quantized pooling gives its result the scale of its input, and means are much smaller than the largest value. Before
    a classifier or the gate of a squeeze-and-excitation block, few of the 256 values are then used (measured on an
    EfficientNet-B0 at 64 pixels: SQNR of 15 dB with torch's, 18 dB with an observer for the means).
    """

    @staticmethod
    def compute(x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 1)


class QuantizedGlobalAverage(QuantizedOperator):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.ops.edge_bundler.global_average(x, self.scale, self.zero_point)
        return result


_QUANTIZABLE: dict[type[nn.Module], Callable[[], nn.Module]] = {
    nn.AdaptiveAvgPool2d: QuantizableGlobalAverage,
    nn.Hardswish: QuantizableHardswish,
    nn.Mish: QuantizableMish,
    nn.SiLU: QuantizableSiLU,
}


def make_quantizable(model: nn.Module) -> None:
    """Replace each SiLU, Hardswish, Mish and global average pooling of a float model by its quantizable form, in place.

    The replacements have no parameters and compute the same values. Subclasses of these modules are not replaced.
    """
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) in _QUANTIZABLE and _is_global(child):
                setattr(parent, name, _QUANTIZABLE[type(child)]())


def _is_global(child: nn.Module) -> bool:
    return not isinstance(child, nn.AdaptiveAvgPool2d) or child.output_size in (1, (1, 1))


def _mish(x: Tensor, scale: float, zero_point: int) -> Tensor:
    return torch.quantize_per_tensor(nn.functional.mish(x.dequantize()), scale, zero_point, torch.quint8)


def _global_average(x: Tensor, scale: float, zero_point: int) -> Tensor:
    return torch.quantize_per_tensor(nn.functional.adaptive_avg_pool2d(x.dequantize(), 1), scale, zero_point, torch.quint8)


# Custom operators, so that the exporter sees one node for each.
_operators = torch.library.Library("edge_bundler", "FRAGMENT")
_operators.define("mish(Tensor x, float scale, int zero_point) -> Tensor")
_operators.impl("mish", _mish, "QuantizedCPU")
_operators.define("global_average(Tensor x, float scale, int zero_point) -> Tensor")
_operators.impl("global_average", _global_average, "QuantizedCPU")

# Torch's global table is extended at import, because callers convert these models with `torch.ao.quantization.convert(model)`,
# without a mapping (docs/specification.md). Only types of this package are added; no entry of torch is changed.
DEFAULT_STATIC_QUANT_MODULE_MAPPINGS.update(
    {
        QuantizableBatchNormReLU: QuantizedBatchNormReLU,
        QuantizableGlobalAverage: QuantizedGlobalAverage,
        QuantizableHardswish: QuantizedHardswish,
        QuantizableMish: QuantizedMish,
        QuantizableSiLU: QuantizedSiLU,
    }
)
