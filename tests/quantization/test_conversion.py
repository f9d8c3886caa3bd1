from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from bundler.graphs.comparison import informative_problem, sqnr_db
from bundler.models.mobilenet_v3 import mobilenet_v3_small
from bundler.models.resnet import resnet18
from bundler.quantization import calibrate, convert, get_platform_aware_qconfig, quantized_engine
from bundler.targets import TargetProfile


@pytest.fixture
def weights(weights_of: Callable[[str], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    return weights_of("resnet18")


# The sequence calls torch itself, which announces the end of quantized tensors each time.
@pytest.mark.filterwarnings(r"ignore:torch\.quantize_per_tensor, torch\.quantize_per_channel:UserWarning")
def test_the_specifications_sequence_word_for_word(
    weights: Mapping[str, Tensor], target: TargetProfile, calibration: Tensor, golden: Tensor
) -> None:
    with quantized_engine(target.quantization.engine), torch.inference_mode():
        expected = resnet18(weights=weights, num_classes=10)(golden)
        # build full-precision model and prepare for PTQ
        model = resnet18(weights=weights, num_classes=10, quantize=True, is_qat=False, target=target.quantization)
        # Calibration codes here...
        model(calibration)
        # Quantize model after calibration
        torch.ao.quantization.convert(model, inplace=True)
        # get prediction
        output = model(golden)
        assert informative_problem(output.numpy()) == ""
        assert sqnr_db(expected.numpy(), output.numpy()) > 6  # noise of half the signal's amplitude; measured: 13 to 16

        prepared = resnet18(weights=weights, num_classes=10, quantize=True, is_qat=False, target=target.quantization)
        prepared(calibration)
        assert torch.equal(convert(prepared, target.quantization)(golden), output)
        # Calibrated in float64, ranges differ in their last bits, and a value here and there is rounded the other way.
        prepared = resnet18(weights=weights, num_classes=10, quantize=True, is_qat=False, target=target.quantization)
        calibrate(prepared, [calibration])
        assert sqnr_db(output.numpy(), convert(prepared, target.quantization)(golden).numpy()) > 15


def test_the_prepared_model_stays_and_can_be_converted_again(
    weights: Mapping[str, Tensor], target: TargetProfile, calibration: Tensor, golden: Tensor
) -> None:
    prepared = resnet18(weights=weights, num_classes=10, quantize=True, target=target.quantization)
    calibrate(prepared, [calibration])
    with torch.inference_mode():
        before = prepared(golden)
        prepared.train()
        first, again = convert(prepared, target.quantization), convert(prepared, target.quantization)
        assert prepared.training
        assert not first.training
        assert torch.equal(prepared.eval()(golden), before)
        with quantized_engine(target.quantization.engine):
            assert torch.equal(first(golden), again(golden))
            assert not torch.equal(first(golden), before)


def test_the_engine_is_restored_when_the_conversion_fails(target: TargetProfile) -> None:
    before = torch.backends.quantized.engine
    with pytest.raises(Exception, match="qconfig"):
        convert(torch.nn.Sequential(torch.ao.nn.qat.Linear(2, 2, qconfig=None)), target.quantization)
    assert torch.backends.quantized.engine == before


@pytest.mark.filterwarnings("default:must run observer:UserWarning")
def test_a_model_that_was_not_calibrated_is_not_converted_in_silence() -> None:
    prepared = mobilenet_v3_small(num_classes=10, quantize=True)
    with pytest.warns(UserWarning, match="must run observer before calling calculate_qparams"):
        convert(prepared, get_platform_aware_qconfig())


def test_a_user_sees_no_warning_of_torchs() -> None:
    """In a process of its own: torch gives some of its warnings only once."""
    code = """
import torch
from bundler.models.resnet import resnet18
from bundler.quantization import calibrate, convert, quantized_engine
from bundler.targets import load_targets

for profile in load_targets():
    target = profile.quantization
    for is_qat in (False, True):
        prepared = resnet18(quantize=True, is_qat=is_qat, target=target)
        calibrate(prepared, [torch.rand(2, 3, 64, 64)])
        with quantized_engine(target.engine):
            convert(prepared, target)(torch.rand(1, 3, 64, 64))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
