from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("first", ["bundler.models.checkpoints", "bundler.models.resnet"])
def test_torchvision_imports_behind_any_of_our_modules(first: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import {first}, torchvision; torchvision.models.resnet18"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
