from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from bundler.errors import OutOfSpaceError
from bundler.files.atomic_write import atomic_write


def test_a_file_replaces_an_earlier_one_when_the_block_ends(tmp_path: Path) -> None:
    destination = tmp_path / "new" / "layer.tar"
    for content in (b"first", b"second"):
        with atomic_write(destination) as partial:
            partial.write_bytes(content)
            assert not destination.exists() or destination.read_bytes() != content
        assert destination.read_bytes() == content
    assert [path.name for path in destination.parent.iterdir()] == ["layer.tar"]


def test_a_directory_that_another_process_has_finished_meanwhile_stays(tmp_path: Path) -> None:
    destination = tmp_path / "entry"
    with atomic_write(destination) as partial:
        partial.mkdir()
        (partial / "ours").touch()
        destination.mkdir()
        (destination / "theirs").touch()
    assert [path.name for path in destination.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [destination]


def test_the_temporary_directory_has_the_given_prefix_and_is_private(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "entry", prefix=".entry.making-") as partial:
        assert partial.parent.parent == tmp_path
        assert partial.parent.name.startswith(".entry.making-")
        assert partial.parent.stat().st_mode & 0o777 == 0o700
        partial.touch()


def _write_half(path: Path, failure: BaseException) -> None:
    path.write_bytes(b"half")
    raise failure


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path: Path) -> None:
    destination = tmp_path / "layer.tar"
    destination.write_bytes(b"good")
    with pytest.raises(OutOfSpaceError, match=r"layer\.tar"), atomic_write(destination) as partial:
        _write_half(partial, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert destination.read_bytes() == b"good"
    assert list(tmp_path.iterdir()) == [destination]


def test_an_interruption_leaves_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "layer.tar") as partial:
        _write_half(partial, KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []
