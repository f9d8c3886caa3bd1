from __future__ import annotations

import pytest
import torch

from bundler.errors import BundlerError
from bundler.quantization import quantized_engine


@pytest.mark.parametrize("name", ["fbgemm", "qnnpack"])
def test_the_engine_is_set_and_restored(name: str) -> None:
    before = torch.backends.quantized.engine
    with quantized_engine(name):
        assert torch.backends.quantized.engine == name
        with quantized_engine("qnnpack" if name == "fbgemm" else "fbgemm"):
            assert torch.backends.quantized.engine != name
        assert torch.backends.quantized.engine == name
    assert torch.backends.quantized.engine == before


def test_the_engine_is_restored_when_the_work_fails() -> None:
    before = torch.backends.quantized.engine
    other = "qnnpack" if before != "qnnpack" else "fbgemm"
    with pytest.raises(KeyError), quantized_engine(other):
        raise KeyError
    assert torch.backends.quantized.engine == before


def test_an_engine_that_torch_does_not_have_is_refused_by_name() -> None:
    before = torch.backends.quantized.engine
    with pytest.raises(BundlerError, match=r"no quantized engine 'xnnpack'.*qnnpack"), quantized_engine("xnnpack"):
        pass
    assert torch.backends.quantized.engine == before
