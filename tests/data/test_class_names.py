"""Names of classes: lists, and the YAML files of datasets."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundler.data.class_names import DataYaml, folder_of, read_class_list, read_data_yaml, require_count
from bundler.errors import DataError


def read(folder: Path, text: str) -> DataYaml:
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    return read_data_yaml(folder / "data.yaml")


@pytest.mark.parametrize(
    "names",
    [
        "names: [cat, hot dog, '#3']",
        'names: ["cat", "hot dog", "#3"]  # of animals',
        "names: ['cat',\n        'hot dog', # a comment\n        '#3']",
        "names:\n  0: cat\n  1: hot dog\n  2: '#3'",
        "names:\n  # a comment\n- cat\n- hot dog\n\n- '#3'\nnc: 3",
        'names:\n  - cat\n  - hot dog\n  - "#3"\n',
        "names: {0: cat, 2: '#3', 1: hot dog}",
    ],
)
def test_names_are_read_as_tools_write_them(tmp_path: Path, names: str) -> None:
    yaml = read(
        tmp_path, f"# Roboflow\ntrain: ../train/images\nval: ../valid/images\n\nnc: 3\n{names}\n\nroboflow:\n  version: 2\n"
    )
    assert yaml == DataYaml(names=("cat", "hot dog", "#3"), root=None, train="../train/images", validation="../valid/images")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("names: [cat, dog", "line 1: the list of names has no closing bracket"),
        ("names: cat", "line 1: cat is not a list of names"),
        ("nc: 3\nnames: [cat, dog]", r"nc is 3, but there are 2 names"),
        ("names:\n  0: cat\n  2: dog", "not numbered consecutively from 0"),
        ("names: {cat: 0}", "the names are not numbered"),
        ("names:\n  cat\n", "line 1: cat is not a name"),
    ],
)
def test_names_that_are_not_understood_are_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(tmp_path, text)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ["names: [" + "'a," * 200_000, 'names: "' + '\\"' * 300_000, "names: [" + "a," * 300_000])
def test_long_lines_do_not_take_long(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError):
        read(tmp_path, text)


def test_parts_lie_in_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "data" / "valid" / "images").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    for root, part, expected in (
        (None, "../valid/images", "valid/images"),
        (None, "valid/images", "valid/images"),
        ("../datasets/coco128", "valid/images", "valid/images"),
        ("valid", "images", "valid/images"),
        (None, str(tmp_path / "outside"), None),
        (None, "../outside", None),
        (None, None, None),
    ):
        yaml = DataYaml(names=None, root=root, train=None, validation=part)
        found = folder_of(part, yaml, tmp_path / "data")
        assert found == (None if expected is None else tmp_path / "data" / expected)


def test_lists_and_their_length(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("\ufeffcat\r\nhot dog\n\n", encoding="utf-8")
    names = read_class_list(tmp_path / "classes.txt")
    assert names == ("cat", "hot dog")
    require_count(names, tmp_path / "classes.txt", 2)
    with pytest.raises(DataError, match="has 2 class names, but the network has 3 classes"):
        require_count(names, tmp_path / "classes.txt", 3)
    (tmp_path / "classes.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_class_list(tmp_path / "classes.txt")
