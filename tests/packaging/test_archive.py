"""The archive of a bundle: equal files give equal bytes."""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
from pathlib import Path

from bundler.files.sha256 import sha256_of
from bundler.packaging.archive import write_archive


def fill(folder: Path, names: list[str]) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def test_times_order_and_modes_do_not_change_the_archive(tmp_path: Path) -> None:
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


def test_the_tar_has_the_bytes_of_earlier_versions(tmp_path: Path) -> None:
    folder = fill(tmp_path / "bundle", ["requirements.txt", "models/int8-ptq.onnx", "README.md", "golden/inputs.npy"])
    write_archive(folder, tmp_path / "bundle.tar.gz", root="net-x86-fbgemm")
    content = gzip.decompress((tmp_path / "bundle.tar.gz").read_bytes())  # what gzip makes of it depends on zlib's version
    assert hashlib.sha256(content).hexdigest() == "4c3a4489c3adde2ed48cafbddd75855d3f2ac14227b21156c908fbdd9c807c40"
