"""A short run of kills.py; longer ones are started by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_an_installation_that_is_killed_at_any_time_leaves_one_complete_bundle() -> None:
    command = [sys.executable, str(ROOT / "tests" / "attacks" / "kills.py"), "--installing", "--tries", "12"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
