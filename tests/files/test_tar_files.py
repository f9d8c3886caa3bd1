"""Reproducible tar files; the digests below must not change: they determine the digests of published images and archives."""

from __future__ import annotations

import hashlib
import io
import stat
import tarfile
from pathlib import Path
from typing import Literal

import pytest

from bundler.files.tar_files import Member, write_tar

DIGESTS = {
    "gnu": "c3ac49aa2c32f9d92ba67264ccd40de93533457a8afc6ea7f59c08d5894f3044",
    "ustar": "ecfa4e3543913a0005e6bf8f949b1ffc58c7bc325ffe411543dad98219cfe080",
}


def _written(members: list[Member], tar_format: Literal["ustar", "gnu"] = "gnu") -> bytes:
    file = io.BytesIO()
    write_tar(file, members, tar_format=tar_format)
    return file.getvalue()


def _members(folder: Path) -> list[Member]:
    (folder / "README.md").write_bytes(b"read me\n" * 300)
    return [
        Member(name="tmp", mode=stat.S_IFDIR | 0o1777),
        Member(name="usr/bin/python3", mode=0o777, link="python3.11"),
        Member(name="usr/bin/python3.11", mode=stat.S_IFREG | 0o755, source=b"program" * 200),
        Member(name="opt/bundle/README.md", mode=0o644, source=folder / "README.md"),
        Member(name="opt/bundle/empty", mode=0o644),
    ]


@pytest.mark.parametrize("tar_format", ["gnu", "ustar"])
def test_the_bytes_are_those_of_earlier_versions(tmp_path: Path, tar_format: Literal["ustar", "gnu"]) -> None:
    assert hashlib.sha256(_written(_members(tmp_path), tar_format)).hexdigest() == DIGESTS[tar_format]


def test_members_keep_their_order_kind_mode_and_content(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(_written(_members(tmp_path)))) as tar:
        entries = tar.getmembers()
        content = tar.extractfile("opt/bundle/README.md")
        assert content is not None
        assert content.read() == b"read me\n" * 300
    assert [(entry.name, entry.mode, entry.type) for entry in entries] == [
        ("tmp", 0o1777, tarfile.DIRTYPE),
        ("usr/bin/python3", 0o777, tarfile.SYMTYPE),
        ("usr/bin/python3.11", 0o755, tarfile.REGTYPE),
        ("opt/bundle/README.md", 0o644, tarfile.REGTYPE),
        ("opt/bundle/empty", 0o644, tarfile.REGTYPE),
    ]
    assert entries[1].linkname == "python3.11"
    assert {(entry.uid, entry.gid, entry.uname, entry.gname, entry.mtime) for entry in entries} == {(0, 0, "", "", 0)}


def test_a_name_may_be_longer_than_ustar_allows_in_the_gnu_format_only() -> None:
    members = [Member(name="a" * 300, mode=0o644, source=b"x")]
    with tarfile.open(fileobj=io.BytesIO(_written(members))) as tar:
        assert tar.getnames() == ["a" * 300]
    with pytest.raises(ValueError, match="name is too long"):
        _written(members, "ustar")
