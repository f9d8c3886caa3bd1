from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bundler.resources import resource

SCRIPT = resource("docker", "setup-engine.sh")


def _run(*arguments: str, script: Path = SCRIPT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(script), *arguments], env=os.environ | environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_without_permission_to_change_the_system_it_prints_the_commands(tmp_path: Path) -> None:
    run = _run(BUNDLER_NO_SYSTEM="1", DOCKER_HOST=f"unix://{tmp_path}/nobody.sock")
    assert run.returncode == 3
    assert run.stdout == ""
    assert "engine: none answers" in run.stderr
    assert "Nothing was changed" in run.stderr
    assert f"unset DOCKER_HOST    # or start the engine at unix://{tmp_path}/nobody.sock" in run.stderr


def test_check_only_reports(tmp_path: Path) -> None:
    run = _run("--check", DOCKER_HOST=f"unix://{tmp_path}/nobody.sock")
    assert run.returncode == 3
    assert [line.partition(":")[0].strip() for line in run.stderr.splitlines()] == [
        "engine",
        "emulation",
        "user mode",
        "base image",
    ]


def test_the_minimum_version_of_qemu_is_that_of_the_target_profiles(tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    (tmp_path / "targets").mkdir()
    shutil.copy(SCRIPT, tmp_path / "docker")
    for name, version in (("a", "9.2"), ("b", "99.10"), ("c", "99.9")):
        (tmp_path / "targets" / f"{name}.toml").write_text(f'emulator_minimum = "{version}" # the reason\n')
    run = _run("--check", script=tmp_path / "docker" / SCRIPT.name)
    assert run.returncode == 3
    assert "99.10 or newer" in run.stderr
    shutil.rmtree(tmp_path / "targets")
    run = _run("--check", script=tmp_path / "docker" / SCRIPT.name)
    assert run.returncode == 1
    assert "no emulator_minimum in the target profiles" in run.stderr


def test_an_unknown_option_shows_the_usage() -> None:
    run = _run("--frobnicate")
    assert run.returncode == 2
    assert "--check" in run.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", [SCRIPT, resource("docker", "base", "record-packages.sh")], ids=lambda path: path.name)
def test_shellcheck_accepts_the_scripts(script: Path) -> None:
    run = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
