"""Pictures → batches: what is read, what is skipped, in which order, and with which numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bundler.datasets import Preprocessing, load_pictures, synthetic_pictures
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


def test_classes_are_taken_in_turn_and_the_seed_chooses(folder: Path) -> None:
    chosen = load_pictures(folder, SMALL, count=6, seed=0)
    classes = [digest.split("  ")[1].split("/")[0] for digest in chosen.digests]
    assert classes == ["cat", "dog", "eel"] * 2
    assert load_pictures(folder, SMALL, count=6, seed=0).sha256 == chosen.sha256
    assert load_pictures(folder, SMALL, count=6, seed=1).sha256 != chosen.sha256


def test_a_changed_byte_changes_the_digest(folder: Path) -> None:
    before = load_pictures(folder, SMALL, count=18, seed=0)
    picture(99).save(folder / "dog" / "3.png")
    after = load_pictures(folder, SMALL, count=18, seed=0)
    assert len(before) == len(after) == 18
    assert before.sha256 != after.sha256


def test_unreadable_pictures_are_named_skipped_and_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = (folder / "cat" / "0.png").read_bytes()
    (folder / "cat" / "0.png").write_bytes(content[: len(content) // 2])
    (folder / "dog" / "1.png").write_text("no picture")
    (folder / "eel" / "2.png").write_bytes(b"")
    dataset = load_pictures(folder, SMALL, count=18, seed=0)
    assert len(dataset) == 15
    assert sorted(dataset.skipped) == ["cat/0.png", "dog/1.png", "eel/2.png"]
    err = capsys.readouterr().err
    assert all(f"skipped {folder / name}" in err for name in dataset.skipped)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda folder: folder.rmdir(), "does not exist"),
        (lambda _folder: None, "holds no picture"),
        (lambda folder: (folder / "readme.txt").write_text("x"), "holds no picture"),
        (lambda folder: [(folder / f"{index}.jpg").write_text("x") for index in range(3)], "none of the 3 pictures"),
        (lambda folder: picture(1).save(folder / "1.jpg"), "1 of the 1 pictures"),
    ],
    ids=["missing", "empty", "other files", "all unreadable", "only one"],
)
def test_a_folder_without_pictures_is_an_error(tmp_path: Path, prepare: object, words: str) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    prepare(folder)  # type: ignore[operator]
    with pytest.raises(CalibrationError, match=words):
        load_pictures(folder, SMALL, count=4, seed=0)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    picture(1).save(path)
    with pytest.raises(CalibrationError, match="is not a folder"):
        load_pictures(path, SMALL, count=4, seed=0)


def test_golden_pictures_calibrate_nothing_where_there_are_enough(folder: Path) -> None:
    dataset = load_pictures(folder, SMALL, count=12, seed=0)
    kept, golden = dataset.split(4)
    assert (len(kept), len(golden)) == (8, 4)
    assert not any(np.array_equal(one, other) for one in kept.pictures for other in golden)
    few, golden = load_pictures(folder, SMALL, count=3, seed=0).split(4)
    assert (len(few), len(golden)) == (3, 3)


def test_synthetic_pictures_differ_and_repeat() -> None:
    one, again, other = (synthetic_pictures(SMALL, count=3, seed=seed) for seed in (0, 0, 1))
    assert one.source == "synthetic"
    assert one.sha256 == again.sha256 != other.sha256
    assert one.pictures.shape == (3, 3, 32, 32)
    assert np.abs(one.pictures[0] - one.pictures[1]).mean() > 0.1


def test_batches_cover_all_and_the_last_may_be_smaller() -> None:
    dataset = synthetic_pictures(SMALL, count=5, seed=0)
    assert [len(batch) for batch in dataset.batches(2)] == [2, 2, 1]
