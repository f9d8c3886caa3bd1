"""Float64 computation: the same INT8 parameters with any number of threads and instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bundler.errors import BundlerError
from bundler.quantization import double_precision

PROGRAM = Path(__file__).with_name("quantized_digest.py")


def test_threads_instruction_sets_libraries_locale_and_time_zone_change_no_bit() -> None:
    """In float32 they change the last bits of most activations, and thousands of INT8 weights."""
    settings = [
        {"OMP_NUM_THREADS": "1"},
        {"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "default", "LC_ALL": "tr_TR.UTF-8", "TZ": "Pacific/Chatham"},
        {"OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE", "LC_ALL": "C"},
    ]
    common = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_WAIT_POLICY": "PASSIVE"}
    answers = {
        subprocess.run(
            [sys.executable, "-W", "ignore", str(PROGRAM)],
            env={**common, **chosen},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=300,
        ).stdout
        for chosen in settings
    }
    assert len(answers) == 1
    assert len(answers.pop().splitlines()) == 2


def test_a_model_is_float64_inside_and_unchanged_outside() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with double_precision(model):
        assert model(torch.rand(1, 3, 4, 4)).dtype == torch.float64
    assert torch.rand(1).dtype == torch.float32
    after = model.state_dict()
    assert all(value.dtype == after[key].dtype and torch.equal(value, after[key]) for key, value in before.items())


class ConvertsToFloat32(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.last(x.float()))


def test_a_model_that_converts_to_float32_is_reported() -> None:
    model = ConvertsToFloat32()
    with pytest.raises(BundlerError, match="ConvertsToFloat32 cannot be run in float64") as failure, double_precision(model):
        model(torch.rand(1, 4))
    assert "x.dtype" in failure.value.next_step
    assert model(torch.rand(1, 4)).dtype == torch.float32
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), double_precision(model.last):
        model.last(torch.rand(1, 5))
