from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from pathlib import Path

from bundler.files.tar_files import Member
from bundler.images.layers import file_members, read_layer, write_layer


def _bundle(folder: Path, *, when: float) -> Path:
    (folder / "models").mkdir(parents=True)
    (folder / "device.pyz").write_text("print('hello')")
    (folder / "device.pyz").chmod(0o600)
    (folder / "models" / "fp32.onnx").write_bytes(b"weights")
    (folder / "go.sh").write_text("true")
    (folder / "go.sh").chmod(0o700)
    for path in folder.rglob("*"):
        os.utime(path, (when, when))
    return folder


def test_equal_files_give_equal_bytes_regardless_of_order_times_and_modes(tmp_path: Path) -> None:
    files = ["device.pyz", "models/fp32.onnx", "go.sh"]
    first = write_layer(tmp_path / "1.tar", file_members(_bundle(tmp_path / "a", when=1), files, below="opt/bundle"))
    second_folder = _bundle(tmp_path / "b", when=2e9)
    (second_folder / "device.pyz").chmod(0o644)
    second = write_layer(tmp_path / "2.tar", file_members(second_folder, files[::-1], below="opt/bundle"))
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.diff_id == second.diff_id == f"sha256:{hashlib.sha256(second.path.read_bytes()).hexdigest()}"
    assert first.size_bytes == first.path.stat().st_size


def test_members_are_sorted_below_their_folders_and_belong_to_root(tmp_path: Path) -> None:
    folder = _bundle(tmp_path / "a", when=1)
    layer = write_layer(
        tmp_path / "1.tar", file_members(folder, ["device.pyz", "models/fp32.onnx", "go.sh"], below="opt/bundle")
    )
    with tarfile.open(layer.path) as tar:
        entries = tar.getmembers()
    assert [entry.name for entry in entries] == [
        "opt",
        "opt/bundle",
        "opt/bundle/device.pyz",
        "opt/bundle/go.sh",
        "opt/bundle/models",
        "opt/bundle/models/fp32.onnx",
    ]
    assert {entry.name: entry.mode for entry in entries if entry.isfile()} == {
        "opt/bundle/go.sh": 0o755,
        "opt/bundle/models/fp32.onnx": 0o644,
        "opt/bundle/device.pyz": 0o644,
    }
    assert {(entry.uid, entry.gid, entry.mtime) for entry in entries} == {(0, 0, 0)}


def test_a_changed_byte_changes_the_digest(tmp_path: Path) -> None:
    one = write_layer(tmp_path / "1.tar", [Member(name="a", mode=0o644, source=b"x")])
    other = write_layer(tmp_path / "2.tar", [Member(name="a", mode=0o644, source=b"y")])
    assert one.diff_id != other.diff_id


def test_links_and_modes_of_directories_are_kept(tmp_path: Path) -> None:
    members = [
        Member(name="tmp", mode=stat.S_IFDIR | 0o1777),
        Member(name="usr/bin/python3", mode=0o777, link="python3.11"),
    ]
    with tarfile.open(write_layer(tmp_path / "1.tar", members).path) as tar:
        assert tar.getmember("tmp").mode == 0o1777
        assert tar.getmember("usr/bin/python3").linkname == "python3.11"


def test_read_layer_agrees_with_write_layer(tmp_path: Path) -> None:
    written = write_layer(tmp_path / "1.tar", [Member(name="a", mode=0o644, source=b"x")])
    assert read_layer(written.path) == written


def test_a_layer_has_the_digest_of_earlier_versions(tmp_path: Path) -> None:
    members = [
        Member(name="usr/bin/python3", mode=0o777, link="python3.11"),
        Member(name="usr/bin/python3.11", mode=0o755, source=b"program"),
        Member(name=f"usr/lib/{'long-' * 30}name.py", mode=0o644, source=b"module"),
        Member(name="tmp", mode=stat.S_IFDIR | 0o1777),
    ]
    assert (
        write_layer(tmp_path / "1.tar", members).diff_id
        == "sha256:63e82ea10813c352e9af12130b2acd8e228bf5433004e0744ec57ccbe2a67440"
    )
