"""The short form of hostile_files.py; its long form is started by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHORT = (
    *("good.pth", "good_legacy", "good_in_archive", "code_as", "code_alone.pt", "call_reduce", "call_eval", "pickle_deep_key"),
    *("pickle_memo", "pickle_long_bytes", "tensor_stride_0", "tensor_negative", "tensor_elsewhere", "weight_sparse"),
    *("weight_nan", "zip_bomb", "zip_cut_at_1000", "header_endless", "header_nested", "sparse_40G", "git_lfs", "fifo"),
)


def test_hostile_files_are_refused_and_nothing_is_executed() -> None:
    command = [sys.executable, str(ROOT / "tests" / "attacks" / "hostile_files.py"), "--quick", *SHORT]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("\nheld") >= len(SHORT)
