"""The short form of kills.py; its long form is started by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_placing_that_is_killed_at_any_moment_leaves_one_whole_bundle() -> None:
    command = [sys.executable, str(ROOT / "tests" / "attacks" / "kills.py"), "--placing", "--tries", "8"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
