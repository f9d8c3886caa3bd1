"""The archive is the same, byte for byte, for the same files."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

from bundler.packaging.archive import write_archive
from bundler.packaging.checksums import sha256_of


def fill(folder: Path, names: list[str]) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def test_dates_order_and_rights_leave_no_trace(tmp_path: Path) -> None:
    names = ["device.pyz", "models/a.onnx", "README.md"]
    one, other = fill(tmp_path / "one", names), fill(tmp_path / "other", names[::-1])
    os.utime(other / "README.md", (1, 1))
    (other / "README.md").chmod(0o600)
    write_archive(one, tmp_path / "1.tar.gz", root="bundle")
    write_archive(other, tmp_path / "2.tar.gz", root="bundle")
    assert sha256_of(tmp_path / "1.tar.gz") == sha256_of(tmp_path / "2.tar.gz")
    with tarfile.open(tmp_path / "1.tar.gz") as archive:
        assert [(member.name, member.mode) for member in archive] == [
            ("bundle/README.md", 0o644),
            ("bundle/device.pyz", 0o644),
            ("bundle/models/a.onnx", 0o644),
        ]
    (one / "README.md").write_text("changed")
    write_archive(one, tmp_path / "3.tar.gz", root="bundle")
    assert sha256_of(tmp_path / "3.tar.gz") != sha256_of(tmp_path / "1.tar.gz")
