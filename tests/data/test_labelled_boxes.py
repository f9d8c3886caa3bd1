"""Images for detectors: where labels are looked for, what they mean, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundler.data.labelled_boxes import DetectionImages, load_detection_images, load_detection_split
from bundler.data.labelled_images import Split
from bundler.data.preprocessing import Preprocessing
from bundler.errors import DataError

PLAIN = Preprocessing(resize=64, crop=64, interpolation="bilinear", fit="letterbox", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def load(folder: Path) -> DetectionImages:
    return load_detection_images(folder, PLAIN, num_classes=3)


def write(folder: Path, picture: str, label: str | None = None, text: str = "", size: tuple[int, int] = (40, 20)) -> None:
    (folder / picture).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(folder / picture)
    if label is not None:
        (folder / label).parent.mkdir(parents=True, exist_ok=True)
        (folder / label).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("picture", "label"),
    [
        ("a.jpg", "a.txt"),
        ("images/a.jpg", "labels/a.txt"),
        ("images/val/a.png", "labels/val/a.txt"),  # Ultralytics
        ("valid/images/a.jpg", "valid/labels/a.txt"),  # Roboflow
        ("val/day/a.jpg", "val/day/a.txt"),
    ],
)
def test_labels_are_found_as_tools_lay_them_out(tmp_path: Path, picture: str, label: str) -> None:
    write(tmp_path, picture, label, "2 0.5 0.25 0.5 0.5\n\n0 0.1 0.9 0.2 0.2\n")
    pictures = load(tmp_path)
    assert pictures.labels is not None
    (labels,) = pictures.labels
    assert labels.classes.tolist() == [2, 0]
    np.testing.assert_allclose(labels.boxes, [[0.25, 0, 0.75, 0.5], [0, 0.8, 0.2, 1.0]], atol=1e-12)
    assert str(pictures) == "1 images with 2 labelled boxes"


def test_of_polygons_the_boxes_around_them_are_taken(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "a.txt", "1 0.1 0.2 0.5 0.2 0.3 0.8\n0 0.5 0.5 0.5 0.5\n")
    labels = load(tmp_path).labels
    assert labels is not None
    np.testing.assert_allclose(labels[0].boxes, [[0.1, 0.2, 0.5, 0.8], [0.25, 0.25, 0.75, 0.75]])


@pytest.mark.parametrize("source", ["", "data.yaml"])
def test_a_yaml_file_says_where_the_parts_are_and_how_many_classes(tmp_path: Path, source: str) -> None:
    for part in ("learn", "check"):
        write(tmp_path, f"{part}/images/{part}.jpg", f"{part}/labels/{part}.txt", "0 0.5 0.5 0.5 0.5")
    text = "path: ../datasets/mine\ntrain: learn/images\nval: check/images\nnames: [cat, dog, eel]\n"
    (tmp_path / "data.yaml").write_text(text)
    assert [path.name for path in load(tmp_path / source).paths] == ["check.jpg"]
    assert load(tmp_path).classes == ("cat", "dog", "eel")
    assert [path.name for path in split(tmp_path / source).train.paths] == ["learn.jpg"]
    (tmp_path / "data.yaml").write_text(text.replace(", eel", ""))
    with pytest.raises(DataError, match=r"data\.yaml has 2 class names, but the network has 3 classes"):
        load(tmp_path)


def test_names_beside_the_labels_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "a.jpg", "a.txt", "0 0.5 0.5 0.5 0.5")
    (tmp_path / "classes.txt").write_text("cat\ndog\neel\n")
    assert load(tmp_path).classes == ("cat", "dog", "eel")
    (tmp_path / "classes.txt").write_text("cat\n")
    assert load(tmp_path).classes is None
    assert "classes.txt has 1 class names, but the network has 3 classes" in capsys.readouterr().err


def test_labels_lie_over_the_upright_image(tmp_path: Path) -> None:
    pixels = np.full((80, 120, 3), 40, np.uint8)
    pixels[10:30, 10:50] = (255, 30, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = []
    images: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "plain": (Image.fromarray(pixels), {}),
        "phone": (Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90), {"exif": exif}),
    }
    for name, (image, extra) in images.items():
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "a.jpg", quality=100, **extra)
        (picture,) = load(tmp_path / name)
        rows, columns = np.nonzero(picture.pixels[0] > 0.8)
        frames.append((picture.frame, rows.min(), rows.max(), columns.min(), columns.max()))
    assert frames[0] == frames[1]
    assert frames[0][0] == (0, 10, 64, 43)


def test_of_a_divided_folder_the_validation_images_are_measured_on(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write(tmp_path, f"images/{part}/{part}.jpg", f"labels/{part}/{part}.txt", "0 0.5 0.5 0.5 0.5")
    assert [path.name for path in load(tmp_path).paths] == ["val.jpg"]


def split(folder: Path) -> Split[DetectionImages]:
    return load_detection_split(folder, PLAIN, num_classes=3, seed=0)


@pytest.mark.parametrize(("train", "val"), [("images/train", "images/val"), ("train/images", "valid/images"), ("train", "val")])
def test_to_train_both_parts_of_a_divided_folder_are_read(tmp_path: Path, train: str, val: str) -> None:
    write(tmp_path, f"{train}/a.jpg", f"{train.replace('images', 'labels')}/a.txt", "nobody reads this")
    write(tmp_path, f"{val}/b.jpg", f"{val.replace('images', 'labels')}/b.txt", "0 0.5 0.5 0.5 0.5")
    parts = split(tmp_path)
    assert [path.name for path in parts.train.paths] == ["a.jpg"]
    assert [path.name for path in parts.validation.paths] == ["b.jpg"]
    assert (parts.train.labels, parts.validation.labelled_boxes) == (None, 1)


def test_to_train_a_fifth_of_a_folder_that_is_not_divided_is_held_out(tmp_path: Path) -> None:
    for index in range(10):
        write(tmp_path, f"{index}.jpg", f"{index}.txt", "0 0.5 0.5 0.5 0.5")
    parts = split(tmp_path)
    assert (len(parts.train), len(parts.validation), parts.validation.labelled_boxes) == (8, 2, 2)
    assert not set(parts.train.paths) & set(parts.validation.paths)
    assert split(tmp_path).train.paths == parts.train.paths


@pytest.mark.parametrize(
    ("pictures", "words"),
    [
        (("train/a.jpg", "train/b.jpg"), "has train/ but no val/"),
        (("images/val/a.jpg",), "has val/ but no train/"),
        (("a.jpg",), "only one image"),
        ((), "does not exist"),
    ],
)
def test_what_cannot_be_divided_is_refused(tmp_path: Path, pictures: tuple[str, ...], words: str) -> None:
    for picture in pictures:
        write(tmp_path / "data", picture)
    with pytest.raises(DataError, match=words):
        split(tmp_path / "data")


def test_images_to_learn_from_are_mirrored_by_half_and_resumed_where_they_stopped(tmp_path: Path) -> None:
    for index in range(12):
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[:, :32] = 10 * (index + 1)  # bright on the left
        Image.fromarray(pixels).save(tmp_path / f"{index:02}.png")
    pictures = load(tmp_path)
    whole = [batch for (batch,) in pictures.batches(5, seed=3)]
    assert [len(batch) for batch in whole] == [5, 5, 2]
    left = [bool(picture[0, 0, 0] > 0) for batch in whole for picture in batch]
    assert 2 < sum(left) < 10
    assert sorted(round(float(picture.max()) * 255) for batch in whole for picture in batch) == list(range(10, 130, 10))
    resumed = [batch for (batch,) in pictures.batches(5, seed=3, skip=1)]
    assert all(np.array_equal(one, other) for one, other in zip(whole[1:], resumed, strict=True))
    (in_order,) = (batch for (batch,) in pictures.batches(12))
    assert all(picture[0, 0, 0] > 0 for picture in in_order)


def test_an_image_without_a_label_file_shows_nothing_where_others_have_one(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    write(tmp_path, "b.jpg", "b.txt", "1 0.5 0.5 0.5 0.5")
    write(tmp_path, "c.jpg", "c.txt", "")
    labels = load(tmp_path).labels
    assert labels is not None
    assert [one.classes.tolist() for one in labels] == [[], [1], []]
    assert [one.boxes.shape for one in labels] == [(0, 4), (1, 4), (0, 4)]


def test_without_any_label_file_there_are_no_labels(tmp_path: Path) -> None:
    write(tmp_path, "class/a.jpg")
    pictures = load(tmp_path)
    assert (pictures.labels, pictures.labelled_boxes) == (None, None)
    assert "images without labels (no .txt beside them or in labels/ beside images/; no COCO JSON)" in str(pictures)


@pytest.mark.parametrize(
    ("size", "frame"), [((40, 20), (0, 16, 64, 32)), ((20, 80), (24, 0, 16, 64)), ((64, 64), (0, 0, 64, 64))]
)
def test_the_frame_is_where_the_image_lies_in_the_input(
    tmp_path: Path, size: tuple[int, int], frame: tuple[int, int, int, int]
) -> None:
    write(tmp_path, "a.png", size=size)
    (picture,) = load(tmp_path)
    assert picture.frame == frame
    left, top, width, height = frame
    black = np.zeros((64, 64), dtype=bool)
    black[top : top + height, left : left + width] = True
    assert ((picture.pixels == 0).all(0) == black).all()  # grey around it


def test_the_digest_covers_labels_too(tmp_path: Path) -> None:
    digests = set()
    for text in ("0 0.5 0.5 0.5 0.5", "1 0.5 0.5 0.5 0.5"):
        write(tmp_path, "a.png", "a.txt", text)
        digests.add(load(tmp_path).sha256)
    (tmp_path / "a.txt").unlink()
    digests.add(load(tmp_path).sha256)
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 0.5 0.5 0.5", r"a\.txt, line 1: expected 5 numbers"),
        ("0 0.5 0.5 0.5 0.5\n\n0 0.5 0.5 0.5 0.5 0.9", r"a\.txt, line 3: 6 numbers instead of 5; .* confidence"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.3 0.4", r"a\.txt, line 1: expected 5 numbers"),
        ("0 0.1 0.1 0.2 0.1 0.2 3", r"0\.1 0\.1 0\.2 0\.1 0\.2 3 is not a box within the image"),
        ("dog 0.5 0.5 0.5 0.5", r"could not convert string to float: 'dog'"),
        ("3 0.5 0.5 0.5 0.5", r"3 is not a class of the network \(0 to 2\)"),
        ("0.5 0.5 0.5 0.5 0.5", r"0\.5 is not a class"),
        ("0 320 240 64 64", r"320 240 64 64 is not a box within the image"),
        ("0 0.5 0.5 0 0.5", r"0\.5 0\.5 0 0\.5 is not a box"),
        ("0 nan 0.5 0.5 0.5", r"nan 0\.5 0\.5 0\.5 is not a box"),
        ("", r"the 1 label files for .* contain no box"),
    ],
)
def test_labels_that_mean_nothing_are_refused(tmp_path: Path, text: str, words: str) -> None:
    write(tmp_path, "a.png", "a.txt", text)
    with pytest.raises(DataError, match=words):
        load(tmp_path)


def test_a_label_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "a.txt")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"a\.txt cannot be read"):
        load(tmp_path)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match="contains no image"):
        load(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "nowhere")
