"""Conversion of a calibrated or trained model to INT8."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import nn
from torch.ao.nn.intrinsic import BNReLU2d
from torch.ao.quantization.quantization_mappings import get_default_static_quant_module_mappings

from bundler.quantization.batch_norm import QuantizedBatchNormReLU
from bundler.quantization.quantized_engine import quantized_engine
from bundler.targets import QuantizationProfile

__all__ = ["convert"]


def convert(prepared: nn.Module, target: QuantizationProfile) -> nn.Module:
    """Return the INT8 model; the prepared one stays as it is.

    Weights are packed for the target's engine, so the result runs only inside `quantized_engine(target.engine)`.
    """
    mapping: dict[Any, Any] = get_default_static_quant_module_mappings()
    mapping |= {BNReLU2d: QuantizedBatchNormReLU}
    with quantized_engine(target.engine), warnings.catch_warnings():
        # Torch announces the end of quantized tensors. A user can do nothing about it; pyproject.toml bounds the torch.
        warnings.filterwarnings("ignore", r"torch\.quantize_per_tensor, torch\.quantize_per_channel", UserWarning)
        converted: nn.Module = torch.ao.quantization.convert(copy.deepcopy(prepared).eval(), mapping)
    return converted
