from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bundler.graphs.comparison import sqnr_db
from bundler.models.registry import find_model, load_parser

# One of each kind of block. The ReLUs that are left stand where no convolution precedes: behind the addition, or hard ones.
SMALL = ["resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small"]


def kinds(model: nn.Module, *types: type[nn.Module]) -> int:
    return sum(isinstance(module, types) for module in model.modules())


@pytest.fixture(scope="module", params=SMALL)
def build(request: pytest.FixtureRequest, weights_of: Callable[[str], Mapping[str, Tensor]]) -> Callable[[], Any]:
    parser, weights = load_parser(find_model(request.param)[1]), weights_of(request.param)
    return lambda: parser(weights=weights, num_classes=10)


def test_ptq_folds_every_batch_norm(build: Callable[[], Any], golden: Tensor) -> None:
    model = build()
    with torch.inference_mode():
        before = model(golden).numpy()
        model.fuse_model(is_qat=False)
        after = model(golden).numpy()
    assert kinds(model, nn.BatchNorm2d) == 0
    assert all(convolution.bias is not None for convolution in model.modules() if isinstance(convolution, nn.Conv2d))
    assert sqnr_db(before, after) > 80  # float rounding of the folded weights; measured: 103 to 111


def test_qat_keeps_every_batch_norm(build: Callable[[], Any], golden: Tensor) -> None:
    model = build()
    norms = kinds(model, nn.BatchNorm2d)
    with torch.inference_mode():
        before = model(golden)
        model.train().fuse_model(is_qat=True)
        after = model.eval()(golden)
    assert (
        kinds(model, nn.BatchNorm2d)
        == norms
        == kinds(model, torch.ao.nn.intrinsic.ConvBn2d, torch.ao.nn.intrinsic.ConvBnReLU2d)
    )
    assert torch.equal(before, after)


def test_without_a_choice_the_models_mode_decides(build: Callable[[], Any]) -> None:
    in_eval, in_train = build(), build().train()
    in_eval.fuse_model()
    in_train.fuse_model()
    assert kinds(in_eval, nn.BatchNorm2d) == 0
    assert kinds(in_train, nn.BatchNorm2d) == kinds(build(), nn.BatchNorm2d)
