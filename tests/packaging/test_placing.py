"""A bundle takes its place as a whole or not at all."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from bundler.errors import OutputError
from bundler.packaging.placing import place, workshop


def finished(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "file").write_text(text)
    return folder


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A good bundle in its place, with its archive."""
    (tmp_path / "model.tar.gz").write_text("old archive")
    return finished(tmp_path / "model", "old")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_workshop_goes_however_the_block_ends(tmp_path: Path) -> None:
    directory = tmp_path / "dist" / "model"
    with workshop(directory) as folder:
        assert folder.parent == directory.parent
    with pytest.raises(FileNotFoundError), workshop(directory) as folder:
        (folder / "nothing").rename(folder / "half")
    assert list(directory.parent.iterdir()) == []


def test_a_bundle_replaces_an_earlier_one_as_a_whole(directory: Path, tmp_path: Path) -> None:
    (directory / "only in the old one").write_text("x")
    archive = tmp_path / "new.tar.gz"
    archive.write_text("new archive")
    place(finished(tmp_path / "new", "new"), directory, archive=archive, archive_path=tmp_path / "model.tar.gz")
    assert names(directory) == ["file"]
    assert (directory / "file").read_text() == "new"
    assert (tmp_path / "model.tar.gz").read_text() == "new archive"
    assert names(tmp_path) == ["model", "model.tar.gz"]


def test_the_earlier_one_is_put_back_when_the_new_one_cannot_be_moved(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        place(tmp_path / "nothing", directory)
    assert (directory / "file").read_text() == "old"
    assert names(tmp_path) == ["model", "model.tar.gz"]


@pytest.mark.parametrize("earlier", [True, False], ids=["with an earlier bundle", "the first bundle"])
def test_both_stay_as_they_were_when_the_archive_cannot_be_placed(tmp_path: Path, earlier: bool) -> None:
    directory, archive, in_the_way = tmp_path / "model", tmp_path / "new.tar.gz", tmp_path / "model.tar.gz"
    if earlier:
        finished(directory, "old")
    archive.write_text("archive")
    (in_the_way / "something").mkdir(parents=True)
    bundle = finished(tmp_path / "new", "new")
    with pytest.raises(OutputError, match=r"model\.tar\.gz cannot be replaced"):
        place(bundle, directory, archive=archive, archive_path=in_the_way)
    assert not earlier or (directory / "file").read_text() == "old"
    assert (bundle / "file").read_text() == "new"
    assert names(tmp_path) == [*(["model"] if earlier else []), "model.tar.gz", "new", "new.tar.gz"]


class Interrupted(type(Path())):  # type: ignore[misc]
    """A path whose move is made, and at that moment Ctrl-C arrives."""

    def rename(self, target: Path) -> Path:
        super().rename(target)
        raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["the earlier one is aside", "the new one is in place"])
def test_an_interruption_between_the_moves_leaves_the_earlier_bundle(directory: Path, tmp_path: Path, moment: str) -> None:
    with workshop(directory) as folder:
        bundle, place_of_it, archive = finished(folder / "new", "new"), directory, folder / "new.tar.gz"
        archive.write_text("new archive")
        if moment == "the earlier one is aside":
            place_of_it = Interrupted(directory)
        else:
            bundle = Interrupted(bundle)
        with pytest.raises(KeyboardInterrupt):
            place(bundle, place_of_it, archive=archive, archive_path=tmp_path / "model.tar.gz")
    assert (directory / "file").read_text() == "old"
    assert (tmp_path / "model.tar.gz").read_text() == "old archive"
    assert names(tmp_path) == ["model", "model.tar.gz"]


def test_a_finished_bundle_can_be_read_by_others(tmp_path: Path) -> None:
    with workshop(tmp_path / "model") as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        bundle = finished(folder / "model", "new")
        bundle.chmod(0o700)
        place(bundle, tmp_path / "model")
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o755


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written to"), workshop(tmp_path / "file" / "dist" / "model"):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk needs root")
def test_a_read_only_disk_is_refused(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(tmp_path)], check=True)
    try:
        with pytest.raises(OutputError, match="cannot be written to: Read-only"), workshop(tmp_path / "model"):
            pass
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
