"""Labelled images: which classes they have, how they are divided, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundler.data.labelled_images import LabelledImages, load_split, load_validation
from bundler.data.preprocessing import Preprocessing
from bundler.errors import DataError

SMALL = Preprocessing(resize=8, crop=8, interpolation="bilinear")
Fill = Callable[..., Path]


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    """Write `count` images into each class folder, each of one grey, which tells it apart."""

    def write(*classes: str, count: int = 5) -> Path:
        for row, name in enumerate(classes):
            folder = tmp_path / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (10, 9), (20 * row + index,) * 3).save(folder / f"{index}.png")
        return tmp_path

    return write


def greys(pictures: LabelledImages, **options: int) -> list[tuple[int, int]]:
    """Return each image's grey and class, in the order of the batches."""
    found = []
    for batch, labels in pictures.batches(4, **options):
        assert batch.dtype == np.float32
        assert batch.shape[1:] == (3, 8, 8)
        assert labels.dtype == np.int64
        values = batch[:, 0, 0, 0] * SMALL.std[0] + SMALL.mean[0]
        found += list(zip(np.rint(values * 255).astype(int).tolist(), labels.tolist(), strict=True))
    return found


def test_classes_are_the_sorted_folders_and_batches_come_in_order(fill: Fill) -> None:
    pictures = load_validation(fill("dog", "cat"), SMALL, num_classes=2)
    assert pictures.classes == ("cat", "dog")
    assert greys(pictures) == [(20 + index, 0) for index in range(5)] + [(index, 1) for index in range(5)]
    assert len(pictures) == 10


def test_a_seed_shuffles_and_gives_the_same_order_again(fill: Fill) -> None:
    pictures = load_validation(fill("dog", "cat"), SMALL, num_classes=2)
    assert greys(pictures, seed=1) == greys(pictures, seed=1) != greys(pictures, seed=2)
    assert sorted(greys(pictures, seed=1)) == sorted(greys(pictures))


def test_val_is_what_is_measured_on(fill: Fill) -> None:
    folder = fill("train/a", "train/b", "val/a", "val/b")
    assert [path.parent.parent.name for path in load_validation(folder, SMALL, num_classes=2).paths] == ["val"] * 10
    split = load_split(folder, SMALL, num_classes=2, seed=0)
    assert {path.parent.parent.name for path in split.train.paths} == {"train"}
    assert split.validation.paths == load_validation(folder, SMALL, num_classes=2).paths


@pytest.mark.parametrize("part", ["val", "valid", "validation", "test"])
@pytest.mark.parametrize("above", ["", "dataset/", "dataset/v1/"])
def test_parts_have_the_names_that_tools_give_them(fill: Fill, part: str, above: str) -> None:
    folder = fill(*(f"{above}{name}/{label}" for name in ("train", part) for label in "ab"))
    assert {path.parent.parent.name for path in load_validation(folder, SMALL, num_classes=2).paths} == {part}
    split = load_split(folder, SMALL, num_classes=2, seed=0)
    assert {path.parent.parent.name for path in split.train.paths} == {"train"}


def test_classes_may_be_called_as_parts_are(fill: Fill) -> None:
    folder = fill("bus", "test", "train")
    assert load_validation(folder, SMALL, num_classes=3).classes == ("bus", "test", "train")
    assert load_split(folder, SMALL, num_classes=3, seed=0).train.classes == ("bus", "test", "train")


def test_links_are_classes_and_hidden_folders_are_not(fill: Fill, tmp_path: Path) -> None:
    fill("real/a", "real/b", "data/c")
    for name in "ab":
        (tmp_path / "data" / name).symlink_to(f"../real/{name}")
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / "data" / name).mkdir()
    (tmp_path / "data" / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "data" / "a" / "labels.json").write_text("{}")
    pictures = load_validation(tmp_path / "data", SMALL, num_classes=3)
    assert (pictures.classes, pictures.labels) == (("a", "b", "c"), (0,) * 5 + (1,) * 5 + (2,) * 5)


def test_files_that_are_not_images_take_one_line(fill: Fill, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fill("a", "b")
    for name in "ab":
        for index in range(20):
            (folder / name / f"{index}.bin").write_bytes(b"x")
    assert len(load_validation(folder, SMALL, num_classes=2)) == 10
    (line,) = capsys.readouterr().err.splitlines()
    assert "40 files are not images: a/0.bin, a/1.bin, a/10.bin, a/11.bin, a/12.bin and 35 more" in line


def test_a_folder_is_divided_by_the_seed_with_some_of_every_class(fill: Fill) -> None:
    folder = fill("a", "b", "c", count=10)
    split = load_split(folder, SMALL, num_classes=3, seed=0)
    assert sorted(split.validation.labels) == [0, 0, 1, 1, 2, 2]
    assert sorted([*split.train.paths, *split.validation.paths]) == sorted(load_validation(folder, SMALL, num_classes=3).paths)
    assert split == load_split(folder, SMALL, num_classes=3, seed=0)
    assert split != load_split(folder, SMALL, num_classes=3, seed=1)


def test_the_digest_covers_names_and_bytes(fill: Fill) -> None:
    folder = fill("a", "b")
    before = load_validation(folder, SMALL, num_classes=2).sha256
    (folder / "a" / "0.png").rename(folder / "a" / "00.png")
    renamed = load_validation(folder, SMALL, num_classes=2).sha256
    Image.new("RGB", (10, 9), "white").save(folder / "a" / "00.png")
    assert len({before, renamed, load_validation(folder, SMALL, num_classes=2).sha256}) == 3


@pytest.mark.parametrize(
    ("folders", "classes", "words"),
    [
        (("a", "b"), 3, r"has 2 class folders \(a, b\), but the network has 3 classes"),
        ((), 3, r"has 0 class folders, but"),
        (("train/a", "train/b"), 2, r"has train/ but no val/"),
        (("train/a", "train/b", "val/a", "val/c"), 2, r"train and val have different classes: b, c"),
    ],
)
def test_folders_that_do_not_fit_are_refused(fill: Fill, folders: tuple[str, ...], classes: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_split(fill(*folders), SMALL, num_classes=classes, seed=0)


def test_missing_empty_lonely_and_broken_are_named(fill: Fill, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        load_validation(tmp_path / "nowhere", SMALL, num_classes=2)
    folder = fill("a", "b", count=1)
    with pytest.raises(DataError, match=r"a has only one image"):
        load_split(folder, SMALL, num_classes=2, seed=0)
    (folder / "b" / "0.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"b/0\.png cannot be read"):
        list(load_validation(folder, SMALL, num_classes=2).batches(2))
    (folder / "b" / "0.png").rename(folder / "b" / "notes.txt")
    with pytest.raises(DataError, match="b contains no image"):
        load_validation(folder, SMALL, num_classes=2)
