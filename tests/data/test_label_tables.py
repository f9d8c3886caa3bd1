"""CSV files of labels: separators, headings, names or numbers, and lines that are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from bundler.data.label_tables import LabelTable, read_label_table
from bundler.data.labelled_images import load_split, load_validation
from bundler.data.preprocessing import Preprocessing
from bundler.errors import DataError

SMALL = Preprocessing(resize=8, crop=8, interpolation="bilinear")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a.png, b.png and c d.png, and images/e.jpg."""
    (tmp_path / "images").mkdir()
    for index, name in enumerate(("a.png", "b.png", "c d.png", "images/e.jpg")):
        Image.new("RGB", (10, 9), (20 * index,) * 3).save(tmp_path / name)
    return tmp_path


def read(folder: Path, text: str | bytes, num_classes: int = 2) -> LabelTable:
    (folder / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_label_table(folder / "labels.csv", num_classes=num_classes)


@pytest.mark.parametrize(
    "text",
    [
        "filename,label\na.png,dog\nb.png,cat\n",
        "a.png,dog\nb.png,cat",
        "a.png;dog\nb.png;cat\n",
        "label\tid\ndog\ta\ncat\tb\n",  # as competitions name images
        'Image,Class\r\n"a.png","dog"\r\n\r\n"b.png", cat \r\n',
        "\ufeffFilename,x,Label\na.png,1,dog\nb.png,2,cat\n",
        "which,what\na.png,dog\nb.png,cat\n",
        "a.png,dog\nb.png,cat\na.png,dog\n",
        "filename,label\na.png,dog\nb.png,cat\n".encode("utf-16"),
    ],
)
def test_separators_headings_and_quotes_are_understood(folder: Path, text: str | bytes) -> None:
    table = read(folder, text)
    assert [path.name for path in table.images] == ["a.png", "b.png"]
    assert (table.labels, table.classes) == ((1, 0), ("cat", "dog"))


def test_numbers_are_the_classes_and_files_may_lie_in_images(folder: Path) -> None:
    table = read(folder, 'filename,label\n"c d.png",0\ne.jpg,2\nimages/e.jpg,2\n', num_classes=3)
    assert [str(path.relative_to(folder)) for path in table.images] == ["c d.png", "images/e.jpg"]
    assert (table.labels, table.classes) == ((0, 2), ("0", "1", "2"))


def test_a_list_of_classes_gives_their_order(folder: Path) -> None:
    (folder / "classes.txt").write_text("dog\ncat\neel\n")
    table = read(folder, "a.png,dog\nb.png,cat\n", num_classes=3)
    assert (table.labels, table.classes) == ((0, 1), ("dog", "cat", "eel"))
    with pytest.raises(DataError, match=r"line 2: label fox is not in classes\.txt"):
        read(folder, "a.png,dog\nb.png,fox\n", num_classes=3)
    with pytest.raises(DataError, match=r"classes\.txt has 3 class names, but the network has 2 classes"):
        read(folder, "a.png,dog\nb.png,cat\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "labels.csv is empty"),
        ("filename,label\n", "lists no image"),
        ("filename,label\na.png,0\ngone.png,1\nlost.png,1\n", r"line 3: gone\.png \(and 1 others\) is not in"),
        ("filename,label\n../a.png,0\n", r"line 2: \.\./a\.png is not in"),
        ("filename,label\n/etc/passwd,0\n", r"line 2: /etc/passwd is not in"),
        ("filename,label\n\x1b[2J,0\n", r"line 2: \\x1b\[2J is not in"),
        ("a.png,0\nb.png,2\n", "line 2: label 2 is not a class of the network \\(0 to 1\\)"),
        ("a.png,0\nb.png,-1\n", "line 2: label -1 is not a class of the network"),
        ("a.png,cat\nb.png,dog\ne.jpg,eel\n", r"has 3 classes \(cat, dog, eel\), but the network has 2 classes"),
        ("a.png,cat\nb.png,dog\na.png,dog\n", r"line 3: a\.png is dog, but cat in line 1"),
        ("filename,label\na.png\n", "line 2: at least 2 columns are needed"),
        ("filename,label\na.png,\n", "line 2: the label is empty"),
        ("a.png,0,1\n", "line 1: 3 columns without a header"),
        ('filename,label\na.png,0\n"b.png,1\n', "line 3: unexpected end of data"),
        (b"a.png,0\nb.png,\xe9\n", "line 2: it is not UTF-8"),
        (b"a.png\0,0\n", "line 1: a.png.x00 is not in"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(folder: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as refusal:
        read(folder, text)
    assert "\x1b" not in refusal.value.message


def test_a_csv_file_takes_the_place_of_class_folders(folder: Path) -> None:
    table = read(folder, "a.png,dog\nb.png,cat\nc d.png,cat\ne.jpg,dog\n")
    for source in (folder, table.path):
        pictures = load_validation(source, SMALL, num_classes=2)
        assert (pictures.classes, pictures.labels) == (("cat", "dog"), (1, 0, 0, 1))
        assert [labels.tolist() for _, labels in pictures.batches(3)] == [[1, 0, 0], [1]]
    split = load_split(folder, SMALL, num_classes=2, seed=0)
    assert sorted(split.train.labels) == sorted(split.validation.labels) == [0, 1]
    before = pictures.sha256
    read(folder, "a.png,cat\nb.png,cat\nc d.png,cat\ne.jpg,dog\n")
    assert load_validation(folder, SMALL, num_classes=2).sha256 != before
    (folder / "second.csv").write_text("x")
    with pytest.raises(DataError, match=r"has 1 class folders \(images\), but the network has 2 classes"):
        load_validation(folder, SMALL, num_classes=2)
