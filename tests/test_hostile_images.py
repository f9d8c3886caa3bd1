"""A part of `tests/attacks/hostile_images.py`, which has more cases and larger ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).parent / "attacks" / "hostile_images.py"
_QUICK = (
    "png of 3600 megapixels",
    "png of 1 x 80000000",
    "png, exif whose 60000 entries overlap",
    "300 damaged images",
    "devices, pipes and broken links",
    "a sparse file of 200 GB",
    "2^30 paths and loops of links",
    "names",
    "other formats under images' names",
    "class folders with pipes and loops",
    "csv, an absolute path",
    "coco, half a surrogate and an escape",
)


@pytest.mark.parametrize("name", _QUICK)
def test_a_hostile_folder_is_held(name: str) -> None:
    """In a process of its own: the peak memory of a child counts what its parent had when it was started."""
    done = subprocess.run([sys.executable, str(_SCRIPT), name], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " held" in done.stdout
    assert "0 tried" not in done.stdout
