"""The files of a bundle: what is missing, changed or has no checksum is named."""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

import pytest

from .conftest import TinyBundle

SITE_PACKAGES = Path(sysconfig.get_paths()["platlib"])


def test_an_image_that_holds_another_bundle_is_noticed(bundle: TinyBundle) -> None:
    own = hashlib.sha256((bundle.root / "runner.json").read_bytes()).hexdigest()
    assert bundle.run("selftest", "--expect", own[:16]).returncode == 0
    done = bundle.run("selftest", "--expect", "0" * 16)
    assert done.returncode == 3
    assert f"this is another bundle: the SHA-256 of its runner.json is {own}, not 0000000000000000" in done.stderr
    assert done.stdout == ""
    assert bundle.run("selftest", "--expect", "all").returncode == 2


def test_one_mode_alone(bundle: TinyBundle) -> None:
    assert [mode["name"] for mode in bundle.selftest("--mode", "fp32")["modes"]] == ["fp32"]


@pytest.mark.parametrize("name", ["models/int8-ptq.onnx", "golden/fp32.npy", "golden/known-answer.onnx", "device.pyz"])
def test_a_changed_byte_is_found_and_named(bundle: TinyBundle, name: str) -> None:
    data = bytearray((bundle.root / name).read_bytes())
    data[data.index(b"Return ") if name == "device.pyz" else -1] ^= 1  # of the program, in a docstring
    (bundle.root / name).write_bytes(data)
    done = bundle.run("selftest", "--json")
    assert done.returncode == 3
    assert f"{name} is changed" in done.stderr
    assert done.stdout == ""


def test_every_missing_file_is_named(bundle: TinyBundle) -> None:
    (bundle.root / "golden/inputs.npy").unlink()
    (bundle.root / "models/fp32.onnx").unlink()
    done = bundle.run("selftest")
    assert done.returncode == 3
    assert "golden/inputs.npy cannot be read" in done.stderr
    assert "models/fp32.onnx cannot be read" in done.stderr


def test_a_file_without_a_checksum_is_refused(bundle: TinyBundle) -> None:
    config = bundle.config
    del config["files"]["models/fp32.onnx"]
    bundle.configure(config)
    done = bundle.run("selftest")
    assert done.returncode == 3
    assert "models/fp32.onnx is changed, or has no checksum" in done.stderr


def test_an_unknown_mode_is_answered_with_the_known_ones(bundle: TinyBundle) -> None:
    assert "Its modes: int8-ptq, fp32." in bundle.run("selftest", "--mode", "int4").stderr


@pytest.mark.parametrize("command", ["selftest", "probe", "info"])
def test_modules_beside_the_program_are_not_imported(bundle: TinyBundle, tmp_path: Path, command: str) -> None:
    (bundle.root / "device").mkdir()
    for name in ("numpy.py", "json.py", "device/__init__.py", "device/command_line.py"):
        (bundle.root / name).write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    assert bundle.run(command).returncode == 0
    assert not (tmp_path / "imported").exists()
