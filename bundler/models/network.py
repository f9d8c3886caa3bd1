"""Network: a model parser with its options, and the float model with the weights that were loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bundler.models.checkpoints import LoadedWeights
from bundler.models.detector import QuantizableDetector
from bundler.models.registry import load_parser
from bundler.models.specs import Int8Scope, ModelSpec
from bundler.quantization import QuantizationProfile

__all__ = ["Network", "load_network"]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A model parser with its options, and the float model that it made of the loaded weights."""

    parser: Callable[..., nn.Module]
    options: Mapping[str, Any]
    float_model: nn.Module

    def with_weights(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return the float model with other weights."""
        return self.parser(**self.options, weights=weights)

    def prepared(self, weights: Mapping[str, Tensor], profile: QuantizationProfile, *, is_qat: bool = False) -> nn.Module:
        """Return the fused model with observers (PTQ), or with fake quantization (QAT)."""
        return self.parser(**self.options, weights=weights, quantize=True, is_qat=is_qat, target=profile)

    def float_convolutions(self, prepared: nn.Module) -> int:
        """Return how many convolutions of a prepared model stay in float: those of a detector outside of its INT8 scope."""
        return prepared.float_convolutions() if isinstance(prepared, QuantizableDetector) else 0


def load_network(variant: ModelSpec, weights: LoadedWeights, *, int8_scope: Int8Scope) -> Network:
    """Make the float model.

    Raises:
        CheckpointError: the weights belong to another network.
    """
    parser = load_parser(variant)
    options: dict[str, Any] = {"num_classes": weights.num_classes, **weights.options}
    if variant.task == "detection":
        options["int8_scope"] = int8_scope
    return Network(parser=parser, options=options, float_model=parser(**options, weights=weights.state_dict))
