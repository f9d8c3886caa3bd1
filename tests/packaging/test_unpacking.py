"""Archives of bundles are unpacked unchanged; nothing is written outside the temporary directory or beyond the limits."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bundler.errors import BundleDamagedError
from bundler.packaging.archive import write_archive
from bundler.packaging.reading import check_bundle
from bundler.packaging.unpacking import is_archive, unpacked


def entry(name: str, *, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


def archive(path: Path, *entries: tarfile.TarInfo, format: int = tarfile.USTAR_FORMAT) -> Path:  # noqa: A002
    with tarfile.open(path, "w:gz", format=format) as tar:
        for info in entries:
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return path


def test_an_archive_gives_the_bundle_back(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.tar.gz"
    write_archive(bundle, path, root="mobilenet_v2-arm64-qnnpack")
    assert is_archive(path)
    with unpacked(path) as folder:
        assert check_bundle(folder).digests == check_bundle(bundle).digests
        place = folder.parent
    assert not place.exists()


def dated(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.mtime = 0  # whole seconds, which need no extended header
    return info


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_archives_of_tar_are_unpacked_too(bundle: Path, tmp_path: Path, format: int) -> None:  # noqa: A002
    path = tmp_path / "net.tar.gz"
    with tarfile.open(path, "w:gz", format=format) as tar:
        tar.add(bundle, "net", filter=dated)
    with unpacked(path) as folder:
        check_bundle(folder)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([entry("net/../../outside", size=1)], "is not a path of a bundle"),
        ([entry("/net/a", size=1)], "is not a path of a bundle"),
        ([entry("net/\x1b[31m", size=1)], r"'net/\\x1b\[31m' is not a path"),
        ([entry("net/a/b/c", size=1)], "is not a path of a bundle"),
        ([entry("net/link", kind=tarfile.SYMTYPE, link="/etc")], "net/link is a symbolic link"),
        ([entry("net/link", kind=tarfile.LNKTYPE, link="../x")], "net/link is a hard link"),
        ([entry("net/x", kind=tarfile.FIFOTYPE)], "net/x is a FIFO"),
        ([entry("net/x", kind=tarfile.CHRTYPE)], "net/x is a character device"),
        ([entry("net/x", kind=tarfile.CONTTYPE)], "net/x is an entry of type b'7'"),
        ([entry("net/x", size=1), entry("net/x", size=2)], "x occurs twice"),
        ([entry("net/x", size=1), entry("other/x", size=2)], "other/x is not in the one folder"),
        ([entry("x", size=1)], "x is not in the one folder"),
        ([entry(f"net/{number}") for number in range(300)], "more than 200 files"),
        ([entry("net", kind=tarfile.DIRTYPE)], "contains no file"),
        ([], "contains no folder"),
    ],
)
def test_anything_but_regular_files_in_one_folder_is_refused(
    tmp_path: Path, entries: list[tarfile.TarInfo], words: str
) -> None:
    path = archive(tmp_path / "net.tar.gz", *entries)
    with pytest.raises(BundleDamagedError, match=words), unpacked(path):
        pass
    assert [item.name for item in tmp_path.iterdir()] == ["net.tar.gz"]


def gzipped(content: bytes) -> bytes:
    return gzip.compress(content, 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: b"", "contains no folder|truncated|empty header"),
        (lambda: b"PK\x03\x04", "Not a gzipped file"),
        (lambda: gzipped(b"x" * 600), "header"),
        (lambda: gzipped(entry("net/x", size=2**33 - 1).tobuf(tarfile.USTAR_FORMAT)), "too large"),
        (lambda: gzipped(entry("net/x", size=2**30).tobuf(tarfile.USTAR_FORMAT) + bytes(1000)), "truncated"),
        (lambda: gzipped(entry("net/x", size=1000).tobuf(tarfile.USTAR_FORMAT) + bytes(2000))[:-20], "ended before|CRC|Error"),
        (lambda: gzipped(entry("x" * 300, size=1).tobuf(tarfile.PAX_FORMAT)), "is not a path|type b'x'"),
    ],
    ids=["empty", "zip", "no tar", "huge", "cut off", "half a gzip", "pax"],
)
def test_files_that_are_no_archive_are_refused(tmp_path: Path, make: Callable[[], bytes], words: str) -> None:
    path = tmp_path / "net.tar.gz"
    path.write_bytes(make())
    with pytest.raises(BundleDamagedError, match=words), unpacked(path):
        pass


def test_a_fifo_is_not_an_archive(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "net.tar.gz")
    assert not is_archive(tmp_path / "net.tar.gz")
