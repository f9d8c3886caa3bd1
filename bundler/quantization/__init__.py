"""Eager-mode INT8 quantization; every `torch.ao` name of the project is used in this package only."""

from bundler.quantization import symbolics  # noqa: F401  registers ONNX symbolics with torch.onnx
from bundler.quantization.eager import (
    DeQuantStub,
    FloatFunctional,
    QuantStub,
    calibrate,
    convert,
    fuse_modules,
    quantized_engine,
)
from bundler.quantization.equalization import equalize_channels
from bundler.quantization.integer_trace import TorchTensor, trace_integers
from bundler.quantization.layer_sqnr import LayerSqnr, measure_layers
from bundler.quantization.mixed_precision import FloatBlock, find_float_blocks, with_float_blocks
from bundler.quantization.precision import double_precision
from bundler.quantization.preparation import load_fuse_prepare
from bundler.quantization.qconfig import get_platform_aware_qconfig
from bundler.quantization.quantizable_modules import make_quantizable
from bundler.quantization.weight_rounding import count_layers, round_weights
from bundler.targets import QuantizationProfile

__all__ = [
    "DeQuantStub",
    "FloatBlock",
    "FloatFunctional",
    "LayerSqnr",
    "QuantStub",
    "QuantizationProfile",
    "TorchTensor",
    "calibrate",
    "convert",
    "count_layers",
    "double_precision",
    "equalize_channels",
    "find_float_blocks",
    "fuse_modules",
    "get_platform_aware_qconfig",
    "load_fuse_prepare",
    "make_quantizable",
    "measure_layers",
    "quantized_engine",
    "round_weights",
    "trace_integers",
    "with_float_blocks",
]
