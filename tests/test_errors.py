"""Errors: documented exit codes, and suggestions for misspelled names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler import errors
from bundler.errors import BundlerError, nearest
from bundler.models.registry import models

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
CLASSES = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, BundlerError)]


@pytest.fixture(scope="module")
def help_text() -> str:
    command = [sys.executable, "-c", "from bundler.cli import main; main()", "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_exit_code_is_documented_in_the_docs_and_in_help(kind: type[BundlerError], help_text: str) -> None:
    assert re.search(rf"^ +{kind.exit_code}  \w", help_text, re.MULTILINE)
    assert re.search(rf"^\| {kind.exit_code} \| \w", PAGE, re.MULTILINE)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("ResNet-50", "resnet50"),
        ("mobilnet_v2", "mobilenet_v2"),
        ("mobilenetv3large", "mobilenet_v3_large"),
        ("yolo5s", "yolov5s"),
    ],
)
def test_the_most_similar_name_comes_first(typed: str, meant: str) -> None:
    assert nearest(typed, models()).startswith(f"Did you mean {meant}")


def test_without_a_similar_name_nothing_is_suggested() -> None:
    assert nearest("zzzzzz", models()) == ""


@given(st.text(max_size=30))
def test_any_text_is_accepted(text: str) -> None:
    answer = nearest(text, ["resnet18", "resnet34"])
    assert answer == "" or answer.startswith("Did you mean resnet")
