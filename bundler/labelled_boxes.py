"""Pictures for detectors, with labelled boxes where there are any: YOLO's text files, as annotation tools export them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bundler.datasets import SUFFIXES
from bundler.errors import DataError
from bundler.labelled_pictures import HELD_OUT, Split, read_batches, read_picture, sha256_of_files
from bundler.preprocessing import Preprocessing

__all__ = [
    "DetectionPicture",
    "DetectionPictures",
    "Labels",
    "load_detection_pictures",
    "load_detection_split",
]

# As Ultralytics', hand-made and Roboflow's folders call it.
TRAINING = ("images/train", "train")
VALIDATION = ("images/val", "val", "valid")
SLACK = 1e-3  # by which tools let a box stick out of its picture


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The objects in a picture: classes int64 [K]; left, top, right and bottom float64 [K, 4]."""

    classes: NDArray[np.int64]
    boxes: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DetectionPicture:
    """A letterboxed picture, float32 [3, height, width], and its own part of that: left, top, width and height in pixels."""

    pixels: NDArray[np.float32]
    frame: tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class DetectionPictures:
    """Files, read from disk when they are needed; `labels` (boxes in shares of the picture's sides) is None without any."""

    folder: Path
    paths: tuple[Path, ...]
    label_paths: tuple[Path, ...]
    labels: tuple[Labels, ...] | None
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def __str__(self) -> str:
        if self.labels is None:
            return f"{len(self)} pictures without labels (no .txt beside them, or in labels/ beside images/)"
        return f"{len(self)} pictures with {self.labelled_boxes} labelled boxes"

    @property
    def labelled_boxes(self) -> int | None:
        return None if self.labels is None else sum(len(labels.classes) for labels in self.labels)

    @cached_property
    def sha256(self) -> str:
        """Covers each file's name and bytes, pictures and labels, in their order."""
        return sha256_of_files(self.folder, (*self.paths, *self.label_paths))

    def batches(self, size: int, *, seed: int | None = None, skip: int = 0) -> Iterator[tuple[NDArray[np.float32]]]:
        """Yield pictures alone, float32 [N, 3, height, width], as `read_batches` does."""
        for _, pictures in read_batches(self.paths, self.preprocessing, size, seed=seed, skip=skip):
            yield (pictures,)

    def __iter__(self) -> Iterator[DetectionPicture]:
        """Yield the pictures in their order.

        Raises:
            DataError: a picture cannot be read.
        """
        for path in self.paths:
            pixels, size = read_picture(path, self.preprocessing)
            yield DetectionPicture(pixels=pixels, frame=self.preprocessing.frame(*size))


def load_detection_pictures(folder: Path, preprocessing: Preprocessing, *, num_classes: int) -> DetectionPictures:
    """List the pictures of `folder`, or of its `images/val`, `val` or `valid`, with the labels found for them.

    A picture's labels are in the file of its name with .txt, beside it or below `labels` where the picture is below `images`:
    a line `class centre-x centre-y width height` for each object, in shares of the picture's sides
    (https://docs.ultralytics.com/datasets/detect/). Where any picture has such a file, one without shows no object.

    Raises:
        DataError: there is no picture, a label cannot be read or is none of the network's classes, or no file has a label.
    """
    return _labelled(folder, _listed(_part(folder, VALIDATION) or folder), preprocessing, num_classes)


def load_detection_split(
    folder: Path, preprocessing: Preprocessing, *, num_classes: int, seed: int
) -> Split[DetectionPictures]:
    """List the pictures of `images/train` or `train`, and those that `load_detection_pictures` lists.

    Of a folder that is not divided, a fifth is held out to measure with, chosen by the seed. Labels to train on are not read.

    Raises:
        DataError: as `load_detection_pictures`; or one part is there without the other, or there is a single picture.
    """
    training, validation = _part(folder, TRAINING), _part(folder, VALIDATION)
    if (training is None) != (validation is None):
        found, lacking = ("train", "val") if validation is None else ("val", "train")
        raise DataError(f"{folder} has {found}/ and no {lacking}/", next_step="Give both, or pictures alone.")
    if training is not None and validation is not None:
        learned, measured = _listed(training), _listed(validation)
    else:
        paths = _listed(folder)
        if len(paths) < 2:
            raise DataError(f"{folder} has a single picture", next_step="Give at least 2, to train on and to measure with.")
        held_out = set(np.random.default_rng(seed).permutation(len(paths))[: max(round(len(paths) * HELD_OUT), 1)].tolist())
        learned = tuple(path for index, path in enumerate(paths) if index not in held_out)
        measured = tuple(path for index, path in enumerate(paths) if index in held_out)
    return Split(
        train=DetectionPictures(folder=folder, paths=learned, label_paths=(), labels=None, preprocessing=preprocessing),
        validation=_labelled(folder, measured, preprocessing, num_classes),
    )


def _part(folder: Path, names: Sequence[str]) -> Path | None:
    if not folder.is_dir():
        raise DataError(f"the data folder {folder} does not exist", next_step="Give a folder of pictures.")
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _listed(folder: Path) -> tuple[Path, ...]:
    paths = tuple(sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()))
    if not paths:
        raise DataError(f"{folder} holds no picture", next_step=f"Put some in: {', '.join(sorted(SUFFIXES))}.")
    return paths


def _labelled(folder: Path, paths: tuple[Path, ...], preprocessing: Preprocessing, num_classes: int) -> DetectionPictures:
    places = [_label_path(path, folder) for path in paths]
    label_paths = tuple(place for place in places if place is not None)
    labels = None
    if label_paths:
        labels = tuple(_NOTHING if place is None else _read_labels(place, num_classes) for place in places)
        if not any(len(own.classes) for own in labels):
            raise DataError(
                f"the {len(label_paths)} label files for the pictures of {folder} hold no box",
                next_step="Fill them, or remove them: boxes are then compared with FP32's alone.",
            )
    return DetectionPictures(folder=folder, paths=paths, label_paths=label_paths, labels=labels, preprocessing=preprocessing)


_NOTHING = Labels(classes=np.empty(0, np.int64), boxes=np.empty((0, 4)))


def _label_path(picture: Path, folder: Path) -> Path | None:
    places = [picture.with_suffix(".txt")]
    parts = picture.relative_to(folder).parts[:-1]
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        places.append(folder.joinpath(*parts[:last], "labels", *parts[last + 1 :], picture.with_suffix(".txt").name))
    return next((place for place in places if place.is_file()), None)


def _read_labels(path: Path, num_classes: int) -> Labels:
    try:
        lines = [line.split() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", next_step="Write one line for each object, as text.") from error
    rows = [_read_line(line, f"{path}, object {number}", num_classes) for number, line in enumerate(lines, start=1)]
    values = np.array(rows, np.float64).reshape(-1, 5)
    middle, half = values[:, 1:3], values[:, 3:5] / 2
    return Labels(classes=values[:, 0].astype(np.int64), boxes=np.hstack([middle - half, middle + half]).clip(0, 1))


def _read_line(words: list[str], where: str, num_classes: int) -> list[float]:
    """Return class, centre x, centre y, width, height."""
    hint = "A line is `class centre-x centre-y width height`, the last four in shares of the picture's sides, 0 to 1."
    try:
        numbers = [float(word) for word in words]
    except ValueError as error:
        raise DataError(f"{where}: {error}", next_step=hint) from error
    if len(numbers) != 5:
        raise DataError(f"{where}: {len(numbers)} numbers instead of 5", next_step=hint)
    kind, x, y, width, height = numbers
    if kind not in range(num_classes):
        raise DataError(
            f"{where}: class {words[0]}, and the network's are 0 to {num_classes - 1}",
            next_step="Give --num-classes as the weights were trained for, or labels of the same classes.",
        )
    if not (0 <= x <= 1 and 0 <= y <= 1 and 0 < width <= 1 + SLACK and 0 < height <= 1 + SLACK):
        raise DataError(f"{where}: {' '.join(words[1:])} is no box in a picture", next_step=hint)
    return numbers
