"""The modules with which a float model marks what is to be quantized."""

from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub

__all__ = ["DeQuantStub", "FloatFunctional", "QuantStub"]
