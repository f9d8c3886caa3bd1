"""Network: what a job's model is parsed from, and the float model with the weights that were given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bundler.models.registry import load_parser
from bundler.pipeline.inputs import Material
from bundler.plan import BuildJob
from bundler.quantization import QuantizationProfile

__all__ = ["Network", "load_network"]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A parser of the specification with its options, and the float model that it made of the given weights."""

    parser: Callable[..., nn.Module]
    options: Mapping[str, Any]
    float_model: nn.Module

    def with_weights(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return the float model with other weights."""
        return self.parser(**self.options, weights=weights)

    def prepared(self, weights: Mapping[str, Tensor], profile: QuantizationProfile, *, is_qat: bool = False) -> nn.Module:
        """Return the fused model with observers (PTQ), or with fake quantization (QAT)."""
        return self.parser(**self.options, weights=weights, quantize=True, is_qat=is_qat, target=profile)


def load_network(job: BuildJob, material: Material) -> Network:
    """Make the float model.

    Raises:
        CheckpointError: the weights belong to another network.
    """
    parser = load_parser(job.variant)
    options: dict[str, Any] = {"num_classes": material.weights.num_classes, **material.weights.options}
    if job.variant.task == "detection":
        options["int8_scope"] = job.int8_scope
    return Network(parser=parser, options=options, float_model=parser(**options, weights=material.weights.state_dict))
