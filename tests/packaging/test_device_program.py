"""device.pyz: the same bytes from the same modules, which can be read and searched as they are."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import bundler.device
from bundler.packaging.device_program import device_program, device_program_sha256, write_device_program

PACKAGE = Path(bundler.device.__file__).parent


def test_the_same_modules_give_the_same_bytes(tmp_path: Path) -> None:
    path = write_device_program(tmp_path)
    assert path.name == "device.pyz"
    assert path.read_bytes() == device_program()
    assert device_program_sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
    code = "import sys; from bundler.packaging.device_program import device_program_sha256 as s; print(s())"
    elsewhere = {"TZ": "Asia/Tokyo", "PYTHONHASHSEED": "3"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=elsewhere)
    assert other.stdout.strip() == device_program_sha256()


def test_it_holds_every_module_as_it_is(tmp_path: Path) -> None:
    content = write_device_program(tmp_path).read_bytes()
    with zipfile.ZipFile(tmp_path / "device.pyz") as archive:
        assert archive.testzip() is None
        members = {entry.filename: entry for entry in archive.infolist()}
        assert members.keys() == {"__main__.py", *(f"device/{path.name}" for path in PACKAGE.glob("*.py"))}
        for path in PACKAGE.glob("*.py"):
            entry = members[f"device/{path.name}"]
            assert archive.read(entry) == path.read_bytes()
            assert path.read_bytes() in content  # stored, not compressed
            assert (entry.date_time, entry.external_attr >> 16) == ((1980, 1, 1, 0, 0, 0), 0o100644)
