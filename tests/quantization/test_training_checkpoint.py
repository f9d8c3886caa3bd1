"""The checkpoint file of a training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bundler.quantization.training_checkpoint import read_checkpoint, write_checkpoint


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting a small disk needs root")
def test_the_earlier_checkpoint_is_kept_if_the_disk_is_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "training.pt"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], check=True)
    try:
        assert write_checkpoint(path, {"fingerprint": "a", "step": 1})
        assert not write_checkpoint(path, {"fingerprint": "a", "step": 2, "model": torch.rand(1_000_000)})
        assert read_checkpoint(path, fingerprint="a") == {"fingerprint": "a", "step": 1}
        assert [item.name for item in tmp_path.iterdir()] == ["training.pt"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert "No space left on device" in " ".join(capsys.readouterr().err.split())
