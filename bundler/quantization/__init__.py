"""Eager-mode INT8 quantization; every `torch.ao` name of the project lives in this package."""

from bundler.quantization import symbolics  # noqa: F401  registers them with torch.onnx
from bundler.quantization.calibration import calibrate
from bundler.quantization.conversion import convert
from bundler.quantization.equalization import equalize_channels
from bundler.quantization.float_layers import FloatBlock, find_float_blocks, with_float_blocks
from bundler.quantization.fusion import fuse_modules
from bundler.quantization.integer_trace import TorchTensor, trace_integers
from bundler.quantization.noise import LayerNoise, measure_layers
from bundler.quantization.precision import double_precision
from bundler.quantization.preparation import load_fuse_prepare
from bundler.quantization.qconfig import get_platform_aware_qconfig
from bundler.quantization.quantized_engine import quantized_engine
from bundler.quantization.replacing import make_quantizable
from bundler.quantization.stubs import DeQuantStub, FloatFunctional, QuantStub
from bundler.quantization.weight_rounding import count_layers, round_weights
from bundler.targets import QuantizationProfile

__all__ = [
    "DeQuantStub",
    "FloatBlock",
    "FloatFunctional",
    "LayerNoise",
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
