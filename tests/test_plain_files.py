"""Files of others are read without waiting, and up to a size."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from bundler.plain_files import read_regular


@pytest.mark.timeout(20)
def test_only_regular_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    Path("file").write_bytes(b"12345")
    Path("link").symlink_to("file")
    Path("loop").symlink_to("loop")
    Path("folder").mkdir()
    os.mkfifo("fifo")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket")
    assert read_regular("file", limit=5) == b"12345"
    assert read_regular("link", limit=5, follow_links=True) == b"12345"
    for name, words in {
        "link": "it is a symbolic link, not a regular file",
        "folder": "it is a folder, not a regular file",
        "fifo": "it is a FIFO, not a regular file",
        "socket": "it is a socket, not a regular file",
        "/dev/null": "it is a character device, not a regular file",
        "nothing": "No such file or directory",
    }.items():
        with pytest.raises(OSError) as caught:  # noqa: PT011  what it says is compared below
            read_regular(name, limit=5)
        assert caught.value.strerror == words
    for name in ("loop", "fifo"):
        with pytest.raises(OSError):  # noqa: PT011  of either kind
            read_regular(name, limit=5, follow_links=True)


def test_a_larger_file_is_refused_without_being_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="larger than 1,000 bytes") as caught:
        read_regular(tmp_path / "sparse", limit=1000)
    assert caught.value.errno == errno.EFBIG


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    os.mkfifo(tmp_path / "fifo")
    before = len(list(Path("/proc/self/fd").iterdir()))
    read_regular(tmp_path / "file", limit=9)
    for name, limit in (("file", 1), ("fifo", 1)):
        with pytest.raises(OSError):  # noqa: PT011  of either kind
            read_regular(tmp_path / name, limit=limit)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
