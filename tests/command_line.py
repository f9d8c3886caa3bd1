"""One small bundle for each target, built through the command line without an engine, and shared by the tests of a session."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BUNDLER = str(Path(sys.executable).with_name("bundler"))
NOWHERE = "unix:///nonexistent/engine.sock"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def run() -> Run:
    """Run `bundler` where no engine answers, and expect an exit code; never a traceback."""

    def run_bundler(*arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        process = subprocess.run(
            [BUNDLER, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env={**os.environ, "DOCKER_HOST": NOWHERE, **environment},
        )
        assert process.returncode == code, process.stderr
        assert "Traceback" not in process.stderr
        return process

    return run_bundler


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """Options of a quick build."""
    return ("--weights", "random", "--input-size", "64", "--num-classes", "10", "--calibration-images", "8")


@pytest.fixture(scope="session")
def unproved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile like arm64's whose INT8 is not looked at on other targets: for tests of what comes before."""
    path = tmp_path_factory.mktemp("targets") / "unproved.toml"
    text = (Path(__file__).parents[1] / "targets" / "arm64-qnnpack.toml").read_text(encoding="utf-8")
    path.write_text(re.sub(r"^also_verify_on = .*$", "also_verify_on = []", text, flags=re.MULTILINE), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def built(run: Run, small: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of the bundles for both targets; the one for arm64 could not be run."""
    output = tmp_path_factory.mktemp("dist")
    run("bundle", "resnet18", "--target", "arm64", *small, "--output", str(output), code=3)
    run("bundle", "resnet18", "--target", "x86", *small, "--output", str(output), code=(0 if _has_qemu() else 3))
    return {"arm64": output / "arm64-qnnpack" / "resnet18", "x86": output / "x86-fbgemm" / "resnet18"}


def _has_qemu() -> bool:
    return any(Path(folder, "qemu-x86_64-static").exists() for folder in os.environ["PATH"].split(os.pathsep))
