"""Edge Bundler: quantize vision models, export them to ONNX, verify the files on a target's CPUs, and package them."""

__version__ = "0.2.0"
