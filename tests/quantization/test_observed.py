"""Modules of our own in a converted model: their scale and zero point stand in its state dict, as those of torch's do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bundler.quantization.activations import QuantizedHardswish, QuantizedMish, QuantizedSiLU
from bundler.quantization.observed import Rescaled
from bundler.quantization.pooling import QuantizedGlobalAverage

KINDS = (QuantizedGlobalAverage, QuantizedHardswish, QuantizedMish, QuantizedSiLU)


@pytest.mark.parametrize("kind", KINDS)
def test_scale_and_zero_point_are_saved_and_loaded(kind: type[Rescaled]) -> None:
    scale = float(torch.tensor(0.0371))
    model, other = nn.Sequential(kind(scale, 57)), nn.Sequential(kind(1.0, 0))
    state_dict = model.state_dict()
    assert list(state_dict) == ["0.scale", "0.zero_point"]
    assert (state_dict["0.scale"].dtype, state_dict["0.zero_point"].dtype) == (torch.float32, torch.int64)
    other.load_state_dict(state_dict)
    assert (other[0].scale, other[0].zero_point) == (scale, 57)


@pytest.mark.parametrize("lacking", ["scale", "zero_point"])
def test_a_state_dict_without_them_is_not_loaded(lacking: str) -> None:
    model = nn.Sequential(QuantizedSiLU(0.5, 3))
    state_dict = model.state_dict()
    del state_dict[f"0.{lacking}"]
    with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: "0\.{lacking}"'):
        model.load_state_dict(state_dict)
    model.load_state_dict(state_dict, strict=False)
