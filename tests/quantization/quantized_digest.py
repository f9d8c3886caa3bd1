"""A program for tests: quantizes a small network and prints digests of its float weights and of its INT8 parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bundler.data.calibration_images import synthetic_images
from bundler.data.preprocessing import Preprocessing
from bundler.models.initialization import random_state_dict
from bundler.models.mobilenet_v3 import mobilenet_v3_small
from bundler.quantization import calibrate, convert, equalize_channels, round_weights
from bundler.targets import find_target


def digest(tensors: Iterable[Tensor]) -> str:
    return hashlib.sha256(b"".join(tensor.detach().contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()


def integers(converted: torch.nn.Module) -> Iterable[Tensor]:
    """Yield the integer weights, weight scales and bias of each layer, and all activation scales and zero points."""
    modules: list[Any] = list(converted.modules())
    for module in modules:
        if callable(getattr(module, "weight", None)):
            weight = module.weight()
            yield from (weight.int_repr(), weight.q_per_channel_scales(), module.bias())
        if hasattr(module, "scale"):
            yield torch.tensor([float(module.scale), float(module.zero_point)], dtype=torch.float64)


def main() -> None:
    small = Preprocessing(resize=32, crop=32, interpolation="bilinear")
    images = torch.from_numpy(synthetic_images(small, count=8, seed=1).pictures)
    profile = find_target("x86").quantization
    weights = random_state_dict(lambda: mobilenet_v3_small(num_classes=10), images, seed=0)
    model = mobilenet_v3_small(weights=weights, num_classes=10)
    equalize_channels(model, images.split(4))
    for ranges in ("minmax-ranges", "mse-ranges"):
        target = profile.with_option(ranges)
        prepared = mobilenet_v3_small(weights=model.state_dict(), num_classes=10, quantize=True, target=target)
        calibrate(prepared, images.split(4))
        rounded = round_weights(prepared, [images])
        print(ranges, digest(weights.values()), digest(integers(convert(rounded, target))))  # noqa: T201


if __name__ == "__main__":
    main()
