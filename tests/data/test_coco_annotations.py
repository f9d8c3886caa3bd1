"""COCO's annotations: which file, which images, which classes and boxes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundler.data.labelled_boxes import DetectionImages, load_detection_images, load_detection_split
from bundler.data.preprocessing import Preprocessing
from bundler.errors import DataError

PLAIN = Preprocessing(resize=64, crop=64, interpolation="bilinear", fit="letterbox", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 90, "name": "eel"}]


def load(source: Path, **options: Any) -> DetectionImages:
    return load_detection_images(source, PLAIN, num_classes=3, **options)


def image(folder: Path, *names: str, size: tuple[int, int] = (40, 20)) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(folder / name)


def annotate(path: Path, *files: str, annotations: Any = None, categories: Any = CATEGORIES, **image_fields: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": index, "file_name": name, "width": 40, "height": 20} | image_fields for index, name in enumerate(files)]
    box = {"id": 100, "image_id": 0, "category_id": 7, "bbox": [10, 5, 20, 10]}
    document = {"images": images, "categories": categories, "annotations": [box] if annotations is None else annotations}
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("file", "annotations", "name"),
    [
        ("a.jpg", "_annotations.coco.json", "a.jpg"),
        ("valid/a.jpg", "valid/_annotations.coco.json", "a.jpg"),  # Roboflow
        ("val2017/a.jpg", "annotations/instances_val2017.json", "a.jpg"),  # COCO itself
        ("images/val2017/a.jpg", "annotations/instances_val2017.json", "a.jpg"),
        ("images/a.jpg", "annotations/instances_default.json", "a.jpg"),  # CVAT
        ("images/a.jpg", "result.json", "images/a.jpg"),  # Label Studio
        ("images/a.jpg", "result.json", "..\\up\\a.jpg"),
    ],
)
def test_annotations_are_found_as_tools_lay_them_out(tmp_path: Path, file: str, annotations: str, name: str) -> None:
    image(tmp_path, file)
    annotate(tmp_path / annotations, name)
    for source in (tmp_path, tmp_path / annotations):
        pictures = load(source)
        assert [path.name for path in pictures.paths] == ["a.jpg"]
        assert pictures.labels is not None
        assert pictures.labels[0].classes.tolist() == [1]  # cat, dog, eel by their identifiers
        np.testing.assert_allclose(pictures.labels[0].boxes, [[0.25, 0.25, 0.75, 0.75]])
        assert (pictures.classes, pictures.labelled_boxes) == (("cat", "dog", "eel"), 1)
        assert len(list(pictures)) == 1


def test_names_of_the_network_give_the_numbers(tmp_path: Path) -> None:
    image(tmp_path, "a.jpg")
    annotate(tmp_path / "annotations.json", "a.jpg", categories=CATEGORIES[:1])
    labels = load(tmp_path, class_names=["eel", "cat", "dog"]).labels
    assert labels is not None
    assert labels[0].classes.tolist() == [2]
    with pytest.raises(DataError, match=r"has 1 categories \(dog\), but the network has 3 classes"):
        load(tmp_path)


def test_the_supercategory_that_roboflow_adds_is_no_class(tmp_path: Path) -> None:
    image(tmp_path, "a.jpg")
    categories = [{"id": 0, "name": "animals", "supercategory": "none"}] + [
        category | {"supercategory": "animals"} for category in CATEGORIES
    ]
    annotate(tmp_path / "_annotations.coco.json", "a.jpg", categories=categories)
    assert load(tmp_path).classes == ("cat", "dog", "eel")


def test_crowds_are_kept_apart_and_boxes_without_extent_left_out(tmp_path: Path) -> None:
    image(tmp_path, "a.jpg", "b.jpg")
    boxes = [
        {"id": 1, "image_id": 0, "category_id": 7, "bbox": [0, 0, 10, 10], "iscrowd": 1},
        {"id": 2, "image_id": 0, "category_id": 3, "bbox": [0, 0, 10, 10], "iscrowd": 0},
        {"id": 3, "image_id": 1, "category_id": 3, "bbox": [0, 0, 0, 10]},
        {"id": 4, "image_id": 1, "category_id": 3, "bbox": [30, 0, 10.02, 10]},
    ]
    annotate(tmp_path / "_annotations.coco.json", "a.jpg", "b.jpg", annotations=boxes)
    pictures = load(tmp_path)
    assert pictures.labels is not None
    assert [labels.counted.tolist() for labels in pictures.labels] == [[False, True], [True]]
    assert pictures.labels[1].boxes.max() == 1
    assert pictures.labelled_boxes == 2


def test_yolos_labels_are_read_first(tmp_path: Path) -> None:
    image(tmp_path, "images/a.jpg")
    annotate(tmp_path / "annotations" / "instances_val.json", "a.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("2 0.5 0.5 0.1 0.1")
    labels = load(tmp_path).labels
    assert labels is not None
    assert labels[0].classes.tolist() == [2]


def test_of_a_phones_photograph_the_boxes_are_on_the_upright_one(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 40)).save(tmp_path / "a.jpg", exif=exif)
    annotate(tmp_path / "annotations.json", "a.jpg")
    (picture,) = load(tmp_path)
    assert picture.frame == (0, 16, 64, 32)
    annotate(tmp_path / "annotations.json", "a.jpg", width=None, height=None)
    labels = load(tmp_path).labels
    assert labels is not None
    np.testing.assert_allclose(labels[0].boxes, [[0.25, 0.25, 0.75, 0.75]])


def test_sizes_that_contradict_are_named(tmp_path: Path) -> None:
    image(tmp_path, "a.jpg")
    annotate(tmp_path / "annotations.json", "a.jpg", width=80, height=40)
    with pytest.raises(DataError, match=r"a\.jpg has 40 x 20 pixels \(upright\), but its annotations are for 80 x 40"):
        list(load(tmp_path))


@pytest.mark.parametrize("together", [True, False])
def test_both_parts_of_the_data_are_divided(tmp_path: Path, together: bool) -> None:
    if together:
        image(tmp_path, "images/a.jpg", "images/b.jpg", "images/c.jpg")
        annotate(tmp_path / "annotations" / "instances_train.json", "b.jpg", "c.jpg")
        annotate(tmp_path / "annotations" / "instances_val.json", "a.jpg")
    else:
        image(tmp_path, "train/b.jpg", "train/c.jpg", "valid/a.jpg", "valid/unlisted.jpg")
        for part, names in (("train", ("b.jpg", "c.jpg")), ("valid", ("a.jpg",))):
            annotate(tmp_path / part / "_annotations.coco.json", *names)
    parts = load_detection_split(tmp_path, PLAIN, num_classes=3, seed=0)
    assert [path.name for path in parts.train.paths] == ["b.jpg", "c.jpg"]
    assert [path.name for path in parts.validation.paths] == ["a.jpg"]
    assert parts.validation.labelled_boxes == 1


def test_a_fifth_of_what_one_file_lists_is_held_out(tmp_path: Path) -> None:
    names = [f"{index}.jpg" for index in range(10)]
    image(tmp_path, *names)
    boxes = [{"id": index, "image_id": index, "category_id": 3, "bbox": [1, 1, 5, 5]} for index in range(10)]
    annotate(tmp_path / "annotations.json", *names, annotations=boxes)
    parts = load_detection_split(tmp_path, PLAIN, num_classes=3, seed=0)
    assert (len(parts.train), len(parts.validation), parts.validation.labelled_boxes) == (8, 2, 2)
    assert len(list(parts.validation)) == 2


def test_images_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    image(tmp_path, "val/one/1.jpg", "val/two/1.jpg")
    annotate(tmp_path / "val" / "annotations.json", "two/1.jpg", "one/1.jpg")
    labels = load(tmp_path).labels
    assert labels is not None
    assert [len(one.classes) for one in labels] == [0, 1]
    annotate(tmp_path / "val" / "annotations.json", "1.jpg")
    with pytest.raises(DataError, match=r"two files match the name 1\.jpg"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"image_id": 9}, "annotation 100: image_id 9 is not the id of an image"),
        ({"image_id": [0]}, r"annotation 100: image_id \[0\] is not the id"),
        ({"category_id": 1}, "annotation 100: category_id 1 is not the id of a category"),
        ({"bbox": None}, "annotation 100: bbox None is not"),
        ({"bbox": [1, 2, 3]}, "annotation 100: bbox .* is not"),
        ({"bbox": [0, 0, float("inf"), 1]}, "annotation 100: bbox .* is not"),
        ({"bbox": [0, 0, -5, 1]}, "annotation 100: bbox .* negative"),
        ({"bbox": [50, 5, 5, 5]}, r"annotation 100: bbox \[50, 5, 5, 5\] is outside of a\.jpg, which has 40 x 20 pixels"),
        ({"bbox": [0, 0, 100, 5]}, "annotation 100: bbox .* is outside of"),
        ({"id": "\x1b[2J", "bbox": 1}, r"annotation \\x1b\[2J: bbox 1 is not"),
    ],
)
def test_annotations_that_mean_nothing_are_named(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    image(tmp_path, "a.jpg")
    box = {"id": 100, "image_id": 0, "category_id": 7, "bbox": [10, 5, 20, 10]} | changed
    annotate(tmp_path / "annotations.json", "a.jpg", annotations=[box])
    with pytest.raises(DataError, match=words):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"images": [' + b"[]," * 5_000_001 + b"0]}", "more lists and objects than the limit of 5,000,000"),
        (b"[]", "its top level is not an object"),
        (b'{"images": {}}', "it has no list of images"),
        (b'{"images": [{"file_name": "a.jpg"}]}', "one of the images has no id"),
        (b'{"images": [{"id": 1}, {"id": 1}]}', "two of the images have the id 1"),
        (b'{"images": [{"id": 1}], "categories": [], "annotations": []}', "has 0 categories"),
        (b'{"images": ' + b"9" * 10_000 + b"}", "is not JSON"),
    ],
)
def test_files_in_other_formats_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    image(tmp_path, "a.jpg")
    (tmp_path / "_annotations.coco.json").write_bytes(content)
    with pytest.raises(DataError, match=words):
        load(tmp_path)


def test_images_that_are_missing_and_files_that_compete_are_named(tmp_path: Path) -> None:
    image(tmp_path, "a.jpg")
    annotate(tmp_path / "annotations" / "first.json", "a.jpg", "gone.jpg", "../../etc/passwd")
    with pytest.raises(DataError, match=r"2 of the 3 images of .*first\.json are not in .*: gone\.jpg, \.\./\.\./etc/passwd"):
        load(tmp_path)
    annotate(tmp_path / "annotations" / "second.json", "a.jpg")
    with pytest.raises(DataError, match=r"has several annotation files: annotations/first\.json, annotations/second\.json"):
        load(tmp_path)
    assert len(load(tmp_path / "annotations" / "second.json")) == 1
    annotate(tmp_path / "annotations" / "second.json", "a.jpg", annotations=[])
    with pytest.raises(DataError, match="contain no box"):
        load(tmp_path / "annotations" / "second.json")
