"""The device program in a bundle: `device.pyz`, an archive of the modules of `bundler.device` that Python executes."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import bundler.device
from bundler.device.runner_json import PROGRAM

__all__ = ["device_program", "device_program_sha256", "write_device_program"]

_PACKAGE: Final = "device"  # in the archive
_START: Final = b"import sys\n\nfrom device.__main__ import start\n\nsys.exit(start())\n"
_DATE: Final = (1980, 1, 1, 0, 0, 0)  # the first that the format can hold


def device_program() -> bytes:
    """Return the archive, whose bytes depend on the modules alone.

    The modules are stored as they are, not compressed: the archive can be read and searched as text, and needs no zlib.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name, source in _members():
            entry = zipfile.ZipInfo(name, date_time=_DATE)
            entry.create_system = 3  # Unix, whatever this host is
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, source)
    return content.getvalue()


def device_program_sha256() -> str:
    return hashlib.sha256(device_program()).hexdigest()


def write_device_program(folder: Path) -> Path:
    """Write the archive into a folder and return its path."""
    path = folder / PROGRAM
    path.write_bytes(device_program())
    return path


def _members() -> Iterator[tuple[str, bytes]]:
    yield "__main__.py", _START
    for path in sorted(Path(bundler.device.__file__).parent.glob("*.py")):
        yield f"{_PACKAGE}/{path.name}", path.read_bytes()
