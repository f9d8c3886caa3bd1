from __future__ import annotations

import hashlib
import tarfile
import zipfile
from pathlib import Path

import pytest

from bundler.errors import ImageError
from bundler.images.runtime_layer import runtime_layer
from bundler.targets import TargetProfile

FILES = {
    "demo/__init__.py": "answer = 42",
    "demo/__init__.pyi": "answer: int",
    "demo/tests/test_demo.py": "assert True",
    "demo-1.0.data/platlib/demo_native.py": "native = True",
    "demo-1.0.data/scripts/demo": "#!python",
    "demo-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n",
    "demo-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp311-cp311-manylinux_2_28_aarch64\n",
    "demo-1.0.dist-info/RECORD": "",
}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index with one wheel for arm64; pip finds no other index."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "demo-1.0-cp311-cp311-manylinux_2_28_aarch64.whl", "w") as wheel:
        for name, text in FILES.items():
            wheel.writestr(name, text)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def _wanting(profile: TargetProfile, *requirements: str) -> TargetProfile:
    return profile.model_copy(update={"runtime": profile.runtime.model_copy(update={"requirements": requirements})})


def test_wheels_are_installed_without_excluded_files(cache: Path, index: Path, arm64: TargetProfile) -> None:
    runtime = runtime_layer(_wanting(arm64, "demo==1.0"))
    with tarfile.open(runtime.layer.path) as tar:
        files = {entry.name for entry in tar if entry.isfile()}
        assert {(entry.mtime, entry.uid, entry.gid) for entry in tar} == {(0, 0, 0)}
    assert files == {
        "opt/runtime/demo/__init__.py",
        "opt/runtime/demo_native.py",
        "opt/runtime/demo-1.0.dist-info/METADATA",
        "opt/runtime/demo-1.0.dist-info/WHEEL",
    }
    (wheel,) = index.iterdir()
    assert [(item.file, item.sha256) for item in runtime.wheels] == [
        (wheel.name, hashlib.sha256(wheel.read_bytes()).hexdigest())
    ]
    assert {path.name for path in cache.glob("*/*")} == {"checksums.json", "layer.tar", "wheels.json"}


def test_the_second_call_needs_no_index(cache: Path, index: Path, arm64: TargetProfile) -> None:
    first = runtime_layer(_wanting(arm64, "demo==1.0"))
    for wheel in index.iterdir():
        wheel.unlink()
    assert runtime_layer(_wanting(arm64, "demo==1.0")) == first
    assert first.layer.path.is_relative_to(cache)


@pytest.mark.usefixtures("cache", "index")
def test_equal_wheels_give_equal_bytes(arm64: TargetProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = runtime_layer(_wanting(arm64, "demo==1.0"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    second = runtime_layer(_wanting(arm64, "demo==1.0"))
    assert first.layer.path != second.layer.path
    assert first.layer.diff_id == second.layer.diff_id


@pytest.mark.usefixtures("index")
def test_a_wheel_for_another_platform_is_not_used(cache: Path, amd64: TargetProfile) -> None:
    with pytest.raises(ImageError, match=r"demo==1\.0 for manylinux_2_28_x86_64.*No matching distribution"):
        runtime_layer(_wanting(amd64, "demo==1.0"))
    assert list(cache.iterdir()) == []
