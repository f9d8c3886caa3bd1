"""The `weights` argument of model parsers: the caller's options are not changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bundler.models.published_weights import resolve_weights

from torchvision.models import MobileNet_V3_Small_Weights

PUBLISHED = MobileNet_V3_Small_Weights.DEFAULT


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """A small state dict in torch.hub's cache under the name of the published file."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    state_dict = {"weight": torch.arange(3.0)}
    torch.save(state_dict, folder / Path(PUBLISHED.url).name)
    return state_dict


@pytest.mark.parametrize("weights", [None, {"weight": torch.zeros(2)}])
def test_a_state_dict_is_returned_with_a_copy_of_the_options(weights: dict[str, torch.Tensor] | None) -> None:
    given = {"num_classes": 7, "dropout": 0.1}
    state_dict, options = resolve_weights(weights, given, progress=False)
    assert state_dict is weights
    assert options == given
    assert options is not given


@pytest.mark.parametrize("given", [{}, {"num_classes": 1000}, {"dropout": 0.1}])
def test_published_weights_add_their_number_of_classes_to_a_copy(
    given: dict[str, Any], cached: dict[str, torch.Tensor]
) -> None:
    before = dict(given)
    state_dict, options = resolve_weights(PUBLISHED, given, progress=False)
    assert given == before
    assert options == {**before, "num_classes": 1000}
    assert state_dict is not None
    assert state_dict.keys() == cached.keys()
    assert torch.equal(state_dict["weight"], cached["weight"])


def test_another_number_of_classes_is_refused_before_any_download() -> None:
    with pytest.raises(ValueError, match="has 1000 classes, not 10"):
        resolve_weights(PUBLISHED, {"num_classes": 10}, progress=False)
