"""The device program as a whole: started from anywhere, it writes nothing beside itself and imports nothing else of ours."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bundler.device

from .conftest import TinyBundle

MODULES = sorted(Path(bundler.device.__file__).parent.glob("*.py"))
ALLOWED = {*sys.stdlib_module_names, "numpy", "onnxruntime"}


def imported(module: Path) -> set[str]:
    """Name the packages that a module imports; relative imports are of the program itself."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).partition(".")[0])
    return found


@pytest.mark.parametrize("module", MODULES, ids=[module.stem for module in MODULES])
def test_a_module_imports_numpy_onnxruntime_and_the_standard_library_alone(module: Path) -> None:
    assert imported(module) <= ALLOWED


@pytest.mark.parametrize("module", MODULES, ids=[module.stem for module in MODULES])
def test_a_module_is_written_for_python_3_10(module: Path) -> None:
    ast.parse(module.read_text(), feature_version=(3, 10))


@pytest.mark.parametrize("flags", [(), ("-P", "-B"), ("-I", "-B"), ("-E",)])
@pytest.mark.parametrize("folder", ["/", ".", "models"])
def test_it_starts_in_any_folder_and_with_the_flags_of_isolation(
    bundle: TinyBundle, folder: str, flags: tuple[str, ...]
) -> None:
    place = bundle.root / folder
    program = os.path.relpath(bundle.root / "device.pyz", place)
    command = [sys.executable, *flags, program, "info", "--json"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["bundle"] == "tiny-x86-fbgemm"


def test_it_starts_through_a_link(bundle: TinyBundle, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle.root / "device.pyz")
    (tmp_path / "folder").symlink_to(bundle.root)
    for program in (tmp_path / "link", tmp_path / "folder" / "device.pyz"):
        done = subprocess.run([sys.executable, str(program), "info"], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("tiny-x86-fbgemm: ")


def test_it_starts_as_a_module_of_the_build_host() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bundler.device", "probe", "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["schema"] == "edge-bundler/probe/1"


def test_nothing_is_written_and_no_telemetry_prepared(bundle: TinyBundle, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    before = sorted(bundle.root.rglob("*"))
    environment: dict[str, Any] = {"HOME": str(home), "XDG_CACHE_HOME": str(home)}
    environment |= {"ORT_DISABLE_TELEMETRY": "0", "PYTHONDONTWRITEBYTECODE": ""}
    done = bundle.run("selftest", **environment)
    assert done.returncode == 0
    assert list(home.rglob("*")) == []  # ONNX Runtime's telemetry would leave its identifier there
    assert sorted(bundle.root.rglob("*")) == before


def test_it_runs_in_a_folder_that_nobody_may_write_to(bundle: TinyBundle) -> None:
    folders = [bundle.root, *(path for path in bundle.root.iterdir() if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert bundle.run("selftest").returncode == 0
    finally:
        for folder in folders:
            folder.chmod(0o755)


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.12", "3.13", "3.14"])
def test_it_starts_on_other_pythons(bundle: TinyBundle, version: str) -> None:
    """`info` needs no numpy, and so runs on any Python that happens to be installed."""
    found = shutil.which(f"python{version}")
    if found is None or subprocess.run([found, "--version"], capture_output=True, check=False).returncode:
        pytest.skip(f"Python {version} is not installed")
    done = bundle.run("info", program=(found, "-W", "error"))
    if version == "3.9":
        assert done.returncode == 4
        assert done.stderr.startswith("error: this program needs Python 3.10 or newer, found 3.9.")
    else:
        assert (done.returncode, done.stderr) == (0, "")
