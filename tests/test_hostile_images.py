"""A part of `tests/attacks/hostile_images.py`, which has more cases and larger ones."""

from __future__ import annotations

import importlib.util
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
def test_a_hostile_folder_is_held(name: str, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("hostile_images", _SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    attacks = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = attacks  # where dataclasses look their annotations up
    spec.loader.exec_module(attacks)
    outcome = attacks.attack(attacks.CASES[name], tmp_path)
    assert outcome.problem == ""
