"""A bundle takes its place as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundler.errors import OutputError
from bundler.packaging.placing import place, workshop


def finished(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "file").write_text(text)
    return folder


def test_the_workshop_goes_however_the_block_ends(tmp_path: Path) -> None:
    directory = tmp_path / "dist" / "model"
    with workshop(directory) as folder:
        assert folder.parent == directory.parent
    with pytest.raises(FileNotFoundError), workshop(directory) as folder:
        (folder / "nothing").rename(folder / "half")
    assert list(directory.parent.iterdir()) == []


def test_a_bundle_replaces_an_earlier_one_as_a_whole(tmp_path: Path) -> None:
    directory, archive_path = tmp_path / "model", tmp_path / "model.tar.gz"
    finished(directory, "old")
    (directory / "only in the old one").write_text("x")
    archive = tmp_path / "new.tar.gz"
    archive.write_text("archive")
    place(finished(tmp_path / "new", "new"), directory, archive=archive, archive_path=archive_path)
    assert [path.name for path in directory.iterdir()] == ["file"]
    assert (directory / "file").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.tar.gz"]


def test_the_earlier_one_is_put_back_when_the_move_fails(tmp_path: Path) -> None:
    directory = finished(tmp_path / "model", "old")
    missing = tmp_path / "new"
    missing.mkdir()

    class Vanishing(type(missing)):  # type: ignore[misc]
        def rename(self, target: Path) -> Path:
            self.rmdir()
            result: Path = super().rename(target)
            return result

    with pytest.raises(FileNotFoundError):
        place(Vanishing(missing), directory)
    assert (directory / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written to"), workshop(tmp_path / "file" / "dist" / "model"):
        pass
