"""Images → batches: what is read, what is skipped, in which order, and with which numbers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bundler.data.calibration_images import load_calibration_images, synthetic_images
from bundler.data.preprocessing import Preprocessing
from bundler.errors import CalibrationError
from bundler.models import torchvision_operators  # noqa: F401  before torchvision

from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.functional import InterpolationMode

SMALL = Preprocessing(resize=40, crop=32, interpolation="bilinear")


def picture(seed: int, size: tuple[int, int] = (60, 50), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for start, name in ((0, "cat"), (10, "dog"), (20, "eel")):
        (tmp_path / name).mkdir()
        for index in range(6):
            picture(start + index).save(tmp_path / name / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize("size", [(60, 50), (50, 60), (37, 81), (32, 32), (500, 40)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_numbers_are_torchvisions(size: tuple[int, int], mode: str, interpolation: str) -> None:
    image = picture(1, size, mode)
    ours = Preprocessing(resize=40, crop=32, interpolation=interpolation)(image)  # type: ignore[arg-type]
    preset = ImageClassification(crop_size=32, resize_size=40, interpolation=InterpolationMode(interpolation))
    # The same resized bytes; the normalisation rounds its float32 operations in another order.
    torch.testing.assert_close(torch.from_numpy(ours), preset(image.convert("RGB")), rtol=0, atol=1e-6)
    assert ours.std() > 0.1


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("RGBA", "png"), ("P", "png"), ("1", "png"), ("CMYK", "jpg"), ("L", "jpg"), ("RGB", "WEBP"), ("P", "gif")],
)
def test_files_of_every_kind_are_read_as_torchvision_reads_them(tmp_path: Path, mode: str, suffix: str) -> None:
    for index in range(2):
        picture(index, mode=mode).save(tmp_path / f"{index}.{suffix}")
    dataset = load_calibration_images(tmp_path, SMALL, count=2, seed=0)
    preset = ImageClassification(crop_size=32, resize_size=40)
    for pixels, digest in zip(dataset.pictures, dataset.digests, strict=True):
        with Image.open(tmp_path / digest.split("  ")[1]) as image:
            torch.testing.assert_close(torch.from_numpy(pixels), preset(image.convert("RGB")), rtol=0, atol=1e-6)


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    for name, turned in (("plain", False), ("phone", True)):
        (tmp_path / name).mkdir()
        for index in range(2):
            image = picture(index)
            if turned:
                image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / name / f"{index}.png", exif=exif)
            else:
                image.save(tmp_path / name / f"{index}.png")
    plain, phone = (load_calibration_images(tmp_path / name, SMALL, count=2, seed=0) for name in ("plain", "phone"))
    assert np.array_equal(plain.pictures, phone.pictures)
    assert plain.sha256 != phone.sha256


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (200, 50), (64, 64), (31, 7), (300, 1)])
def test_a_letterboxed_image_is_whole_and_in_the_middle_of_grey(size: tuple[int, int]) -> None:
    fit = Preprocessing(resize=64, crop=64, interpolation="bilinear", fit="letterbox", mean=(0.0,) * 3, std=(1.0,) * 3)
    picture = Image.new("RGB", size, (255, 0, 51))
    pixels = fit(picture)
    assert pixels.shape == (3, 64, 64)
    inside = np.all(np.isclose(pixels, np.array([1, 0, 0.2], np.float32).reshape(3, 1, 1)), axis=0)
    assert np.allclose(pixels[:, ~inside], 114 / 255)
    rows, columns = np.nonzero(inside)
    height, width = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    assert inside.sum() == height * width  # one rectangle
    assert (width, height) == tuple(max(round(side * 64 / max(size)), 1) for side in size)
    assert abs(rows.min() - (63 - rows.max())) <= 1
    assert abs(columns.min() - (63 - columns.max())) <= 1


def test_images_are_found_below_any_number_of_folders(tmp_path: Path) -> None:
    for index, name in enumerate(["flat.png", "a/one.PNG", "a/b/two.JPeG", "a/b/c d/three.bmp"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(index).save(tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    dataset = load_calibration_images(tmp_path, SMALL, count=9, seed=0)
    assert {digest.split("  ")[1] for digest in dataset.digests} == {
        "flat.png", "a/one.PNG", "a/b/two.JPeG", "a/b/c d/three.bmp"
    }  # fmt: skip
    assert dataset.skipped == ()


def test_names_in_another_encoding_are_read_and_recorded(tmp_path: Path) -> None:
    for index in range(2):
        picture(index).save(tmp_path / os.fsdecode(b"caf\xe9 %d.png" % index))
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    dataset = load_calibration_images(tmp_path, SMALL, count=3, seed=0)
    assert sorted(digest.split("  ")[1] for digest in dataset.digests) == ["caf\\xe9 0.png", "caf\\xe9 1.png"]
    assert dataset.skipped == ("caf\\xe9.jpg",)
    assert len(dataset.sha256) == 64


def test_a_rare_class_is_used_up_and_the_others_fill_the_rest(tmp_path: Path) -> None:
    for name, count in (("common", 8), ("rare", 1), ("some", 3)):
        (tmp_path / name).mkdir()
        for index in range(count):
            picture(index).save(tmp_path / name / f"{index}.png")
    chosen = load_calibration_images(tmp_path, SMALL, count=9, seed=3)
    classes = [digest.split("  ")[1].split("/")[0] for digest in chosen.digests]
    assert classes == ["common", "rare", "some", "common", "some", "common", "some", "common", "common"]


def test_classes_are_taken_in_turn_and_the_seed_chooses(folder: Path) -> None:
    chosen = load_calibration_images(folder, SMALL, count=6, seed=0)
    classes = [digest.split("  ")[1].split("/")[0] for digest in chosen.digests]
    assert classes == ["cat", "dog", "eel"] * 2
    assert load_calibration_images(folder, SMALL, count=6, seed=0).sha256 == chosen.sha256
    assert load_calibration_images(folder, SMALL, count=6, seed=1).sha256 != chosen.sha256


def test_the_digest_covers_bytes_and_names_and_nothing_else(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    def digest(of: Path) -> str:
        dataset = load_calibration_images(of, SMALL, count=18, seed=0)
        assert len(dataset) == 18
        return dataset.sha256

    elsewhere = Path(shutil.copytree(folder, tmp_path_factory.mktemp("elsewhere") / "pictures"))
    for path in elsewhere.rglob("*.png"):
        os.utime(path, (1, 1))
    before = digest(folder)
    assert digest(elsewhere) == before
    with (folder / "dog" / "3.png").open("ab") as file:  # the same image, one byte more in the file
        file.write(b"\0")
    assert digest(folder) != before
    (elsewhere / "dog" / "3.png").rename(elsewhere / "dog" / "33.png")
    assert digest(elsewhere) != before


def test_unreadable_images_are_named_skipped_and_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = (folder / "cat" / "0.png").read_bytes()
    (folder / "cat" / "0.png").write_bytes(content[: len(content) // 2])
    (folder / "dog" / "1.png").write_text("no picture")
    (folder / "eel" / "2.png").write_bytes(b"")
    dataset = load_calibration_images(folder, SMALL, count=18, seed=0)
    assert len(dataset) == 15
    assert sorted(dataset.skipped) == ["cat/0.png", "dog/1.png", "eel/2.png"]
    err = capsys.readouterr().err
    assert all(f"skipped {folder / name}" in err for name in dataset.skipped)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda folder: folder.rmdir(), "does not exist"),
        (lambda _folder: None, "contains no image"),
        (lambda folder: (folder / "readme.txt").write_text("x"), "contains no image"),
        (lambda folder: [(folder / f"{index}.jpg").write_text("x") for index in range(3)], "none of the 3 images"),
        (lambda folder: picture(1).save(folder / "1.jpg"), "1 of the 1 images"),
    ],
    ids=["missing", "empty", "other files", "all unreadable", "only one"],
)
def test_a_folder_without_images_is_an_error(tmp_path: Path, prepare: object, words: str) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    prepare(folder)  # type: ignore[operator]
    with pytest.raises(CalibrationError, match=words):
        load_calibration_images(folder, SMALL, count=4, seed=0)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([np.zeros((50, 60, 3))] * 4, "the 4 calibration images in .* are all black"),
        ([np.full((50, 60, 3), 130)] * 3, "the 3 calibration images in .* are nearly equal"),
        ([np.full((50, 60, 3), 130), np.full((70, 70, 3), 130.9)], "are nearly equal"),
        ([np.pad(np.full((30, 60, 3), 90), ((shade, 0), (0, 0), (0, 0))) for shade in (0, 0, 0)], "are nearly equal"),
    ],
    ids=["black", "equal", "nearly equal", "equal with detail"],
)
def test_images_that_are_alike_are_refused(tmp_path: Path, images: list[Any], words: str) -> None:
    for index, pixels in enumerate(images):
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{index}.png")
    with pytest.raises(CalibrationError, match=words) as refusal:
        load_calibration_images(tmp_path, SMALL, count=8, seed=0)
    assert refusal.value.exit_code == 7


def test_one_image_that_differs_is_enough(tmp_path: Path) -> None:
    for index in range(5):
        Image.new("RGB", (50, 60), (index // 4 * 9,) * 3).save(tmp_path / f"{index}.png")
    assert len(load_calibration_images(tmp_path, SMALL, count=8, seed=0)) == 5


def test_sixteen_bits_and_eight_give_the_same_numbers(tmp_path: Path) -> None:
    for index in range(3):
        grey = np.asarray(picture(index, mode="L"))
        for name, pixels in (("eight", grey), ("sixteen", grey.astype(np.uint16) * 257)):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    eight, sixteen = (load_calibration_images(tmp_path / name, SMALL, count=3, seed=0) for name in ("eight", "sixteen"))
    assert np.array_equal(eight.pictures, sixteen.pictures)


def test_a_strip_is_skipped_by_a_limit_that_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (1, 40_000)).save(folder / "strip.png")
    assert load_calibration_images(folder, SMALL, count=20, seed=0).skipped == ("strip.png",)
    assert "strip.png: it has 1 x 40000 pixels, an aspect ratio above the limit of 50:1" in capsys.readouterr().err


def test_links_to_class_folders_are_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    linked = tmp_path_factory.mktemp("linked")
    for name in ("cat", "dog", "eel"):
        (linked / name).symlink_to(folder / name)
    here, there = (load_calibration_images(of, SMALL, count=9, seed=0) for of in (folder, linked))
    assert here.sha256 == there.sha256


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    picture(1).save(path)
    with pytest.raises(CalibrationError, match="is not a folder"):
        load_calibration_images(path, SMALL, count=4, seed=0)


def test_golden_images_calibrate_nothing_where_there_are_enough(folder: Path) -> None:
    dataset = load_calibration_images(folder, SMALL, count=12, seed=0)
    kept, golden = dataset.split(4)
    assert (len(kept), len(golden)) == (8, 4)
    assert not any(np.array_equal(one, other) for one in kept.pictures for other in golden)
    few, golden = load_calibration_images(folder, SMALL, count=3, seed=0).split(4)
    assert (len(few), len(golden)) == (3, 3)


def test_synthetic_images_differ_and_repeat() -> None:
    one, again, other = (synthetic_images(SMALL, count=3, seed=seed) for seed in (0, 0, 1))
    assert one.source == "synthetic"
    assert one.sha256 == again.sha256 != other.sha256
    assert one.pictures.shape == (3, 3, 32, 32)
    assert np.abs(one.pictures[0] - one.pictures[1]).mean() > 0.1


def test_batches_cover_all_and_the_last_may_be_smaller() -> None:
    dataset = synthetic_images(SMALL, count=5, seed=0)
    assert [len(batch) for batch in dataset.batches(2)] == [2, 2, 1]
