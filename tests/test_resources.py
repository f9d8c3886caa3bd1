"""The data files are found in an editable install and in an installed wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bundler.resources import resource

ROOT = Path(__file__).parents[1]
NAMES = [
    "targets/arm64-qnnpack.toml",
    "templates/README.md.j2",
    "docker/setup-engine.sh",
    "docker/base",
]


@pytest.mark.parametrize("name", NAMES)
def test_an_editable_install_uses_the_files_of_the_repository(name: str) -> None:
    assert resource(*name.split("/")) == ROOT / name


def test_a_wheel_contains_the_data_files(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("edge_bundler-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import bundler, sys; from bundler.resources import resource; from bundler.targets import load_targets\n"
        "assert bundler.__file__.startswith(sys.argv[1]), bundler.__file__\n"
        "print(*[resource(*name.split('/')) for name in sys.argv[2:]], *[target.name for target in load_targets()], sep='\\n')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(site), *NAMES],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert run.returncode == 0, run.stderr
    data = site / "bundler" / "_data"
    assert run.stdout.split() == [*(str(data / name) for name in NAMES), "arm64-qnnpack", "x86-fbgemm"]


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"targets/nothing\.toml is missing"):
        resource("targets", "nothing.toml")
