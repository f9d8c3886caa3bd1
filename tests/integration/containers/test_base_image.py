from __future__ import annotations

from pathlib import Path

import pytest

from bundler.images.base_image import base_layer
from bundler.targets import TargetProfile


@pytest.mark.engine
def test_built_twice_from_the_same_packages_the_bytes_are_equal(
    arm64: TargetProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a"))
    first = base_layer(arm64)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    second = base_layer(arm64)
    assert first.path != second.path
    assert first.diff_id == second.diff_id
