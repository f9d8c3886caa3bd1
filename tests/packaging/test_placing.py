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


def test_the_earlier_one_is_put_back_when_the_new_one_cannot_be_moved(tmp_path: Path) -> None:
    directory = finished(tmp_path / "model", "old")
    with pytest.raises(OutputError, match="No such file"):
        place(tmp_path / "nothing", directory)
    assert (directory / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_both_stay_as_they_were_when_the_archive_cannot_be_placed(tmp_path: Path) -> None:
    directory, archive, in_the_way = finished(tmp_path / "model", "old"), tmp_path / "new.tar.gz", tmp_path / "model.tar.gz"
    archive.write_text("archive")
    (in_the_way / "something").mkdir(parents=True)
    bundle = finished(tmp_path / "new", "new")
    with pytest.raises(OutputError, match="cannot be replaced"):
        place(bundle, directory, archive=archive, archive_path=in_the_way)
    assert (directory / "file").read_text() == "old"
    assert (bundle / "file").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.tar.gz", "new", "new.tar.gz"]


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written to"), workshop(tmp_path / "file" / "dist" / "model"):
        pass
