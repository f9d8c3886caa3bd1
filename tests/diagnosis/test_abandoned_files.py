"""What killed commands left on the disk is listed and removed; what a living one uses stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bundler.packaging.installation import staging_directory

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache" / "edge-bundler"
    folder.mkdir(parents=True)
    return folder


def doctor(cache: Path, *arguments: str) -> list[dict[str, Any]]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache.parent), "DOCKER_HOST": "unix:///nonexistent/engine.sock"}
    command = [sys.executable, "-c", "from bundler.cli import main; main()", "doctor", "--json", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT, timeout=120)
    assert run.returncode == 3, run.stderr  # there is no engine
    findings: list[dict[str, Any]] = json.loads(run.stdout)
    return findings


def test_leftovers_are_listed_and_removed_and_nothing_else(tmp_path: Path, cache: Path) -> None:
    output = tmp_path / "dist"
    place = output / "x86-fbgemm"
    (place / "resnet18").mkdir(parents=True)
    (place / ".resnet18-00000000.work" / "resnet18").mkdir(parents=True)
    (place / ".resnet18.placing-lock").write_bytes(b"")
    (place / ".mine").mkdir()
    (cache / ".base-0123456789abcdef.making-01234567").mkdir()
    (cache / ".base-0123456789abcdef.making").write_bytes(b"")
    (cache / "runtime-0123456789abcdef").mkdir()
    left = {
        str(place / ".resnet18-00000000.work"),
        str(place / ".resnet18.placing-lock"),
        str(cache / ".base-0123456789abcdef.making-01234567"),
        str(cache / ".base-0123456789abcdef.making"),
    }
    with staging_directory(place / "mobilenet_v2") as living:
        listed = doctor(cache, "--output", str(output))
        assert {finding["subject"] for finding in listed if finding["status"] == "left over"} == left
        removed = doctor(cache, "--clean", "--output", str(output))
        assert {finding["subject"] for finding in removed if finding["status"] == "removed"} == left
        assert living.is_dir()
    assert sorted(path.name for path in place.iterdir()) == [".mine", "resnet18"]
    assert [path.name for path in cache.iterdir()] == ["runtime-0123456789abcdef"]
    assert [finding["subject"] for finding in doctor(cache, "--clean", "--output", str(output))][-1] == "leftovers"
