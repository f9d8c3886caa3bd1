"""Labelled images of classifiers, read on demand: for evaluation and training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from bundler.data.image_files import digest_of, read_bytes, read_image
from bundler.data.image_folders import Skipped, find_images, first_names, folder_problem, sub_folders
from bundler.data.label_tables import LabelTable, find_label_table, is_label_table, read_label_table
from bundler.data.preprocessing import Preprocessing
from bundler.errors import DataError
from bundler.visible import visible

__all__ = [
    "HELD_OUT",
    "LabelledImages",
    "Split",
    "load_split",
    "load_validation",
    "read_batches",
    "read_input",
    "sha256_of_files",
]

LEARNED = ("train",)
MEASURED = ("val", "valid", "validation", "test")
DEEPEST = 3  # levels of folders that contain only one folder, as unpacked archives have them
HELD_OUT = 0.2  # of each class, or of all, if a folder is not divided into train/ and val/

Part = TypeVar("Part")
LabelledBatch = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Image files that are read on demand, with their class indices.

    Args:
        folder: of the images.
        paths: of the images.
        labels: class index of each image.
        classes: names by index: the sorted folder names, as in torchvision's `ImageFolder`, or those of a CSV file.
        preprocessing: of the images.
        tables: the CSV file, if it has the labels.
    """

    folder: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    tables: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def __str__(self) -> str:
        return f"{len(self)} images of {len(self.classes)} classes"

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over the names and bytes of all images and of the CSV file, in order."""
        return sha256_of_files(self.folder, (*self.paths, *self.tables))

    def batches(self, size: int, *, seed: int | None = None, skip: int = 0) -> Iterator[LabelledBatch]:
        """Yield images, float32 [N, 3, height, width], and class indices, int64 [N]; see `read_batches`."""
        for chosen, images in read_batches(self.paths, self.preprocessing, size, seed=seed, skip=skip):
            yield images, np.array([self.labels[index] for index in chosen])


def read_batches(
    paths: Sequence[Path], preprocessing: Preprocessing, size: int, *, seed: int | None, skip: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield indices into `paths`, int64 [N], and their images, float32 [N, 3, height, width].

    Args:
        paths: of the images.
        preprocessing: of the images.
        size: of a batch; the last one may be smaller.
        seed: shuffles the images for training, and flips a random half of them horizontally; None for the order of `paths`.
        skip: number of batches at the beginning that are not read.

    Raises:
        UnreadableImageError: an image cannot be read.
    """
    order, mirrored = np.arange(len(paths)), np.zeros(len(paths), dtype=bool)
    if seed is not None:
        generator = np.random.default_rng(seed)
        order, mirrored = generator.permutation(order), generator.random(len(paths)) < 0.5
    for start in range(skip * size, len(order), size):
        chosen = order[start : start + size]
        images = [read_input(paths[index], preprocessing)[0][:, :, :: -1 if mirrored[index] else 1] for index in chosen]
        yield chosen, np.stack(images)


def read_input(path: Path, preprocessing: Preprocessing) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """Return an image as a network input, float32 [3, height, width], and the width and height of the upright image.

    Raises:
        UnreadableImageError: it cannot be read.
    """
    image = read_image(path)
    return preprocessing(image), image.size


def sha256_of_files(folder: Path, paths: Iterable[Path]) -> str:
    """Return the SHA-256 over each file's bytes and its name relative to the folder, in order."""
    lines = (digest_of(read_bytes(path), path, folder) for path in paths)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Split(Generic[Part]):
    """Images for training, and others for evaluation."""

    train: Part
    validation: Part


def load_validation(folder: Path, preprocessing: Preprocessing, *, num_classes: int) -> LabelledImages:
    """List the evaluation images, from class folders (or links to folders) or a CSV file.

    In a divided folder these are in the first existing one of `val`, `valid`, `validation` and `test`. Instead of class folders
    there may be one CSV file (`bundler.data.label_tables`); `folder` may also be such a file itself. A folder that contains
    only one folder is replaced by it.

    Raises:
        DataError: there are no class folders, their number is not `num_classes`, or one is empty.
    """
    folder, part = _part_of(folder, MEASURED)
    return _listed(folder / part if part else folder, preprocessing, num_classes)


def load_split(folder: Path, preprocessing: Preprocessing, *, num_classes: int, seed: int) -> Split[LabelledImages]:
    """List the images of `folder/train`, and those of `load_validation`; if undivided, a fifth of each class is held out.

    Raises:
        DataError: as `load_validation`; or the two parts have different classes, or a class has only one image.
    """
    folder, learned = _part_of(folder, LEARNED)
    folder, measured = _part_of(folder, MEASURED)
    if (learned is None) != (measured is None):
        raise DataError(
            f"{visible(folder)} has {learned or measured}/ but no {'train' if measured else 'val'}/",
            next_step="Pass a folder with both, or with class folders only.",
        )
    if learned is not None and measured is not None:
        train, validation = (_listed(folder / part, preprocessing, num_classes) for part in (learned, measured))
        if train.classes != validation.classes:
            odd = sorted(set(train.classes) ^ set(validation.classes))
            raise DataError(
                f"{visible(folder)}/{learned} and {measured} have different classes: {', '.join(map(visible, odd[:5]))}",
                next_step="Use the same class folders in both.",
            )
        return Split(train=train, validation=validation)
    return _divided(_listed(folder, preprocessing, num_classes), seed)


def _part_of(folder: Path, names: Sequence[str]) -> tuple[Path, str | None]:
    """Return the folder within folders that contain nothing else, and the first of `names` that is a part of it."""
    if is_label_table(folder):
        return folder, None
    inside = [path.name for path in _folders_in(folder)]
    for _ in range(DEEPEST):
        if len(inside) != 1 or inside[0] in (*LEARNED, *MEASURED) or find_label_table(folder) is not None:
            break
        below = [path.name for path in _folders_in(folder / inside[0])]
        if not below and find_label_table(folder / inside[0]) is None:
            break
        folder, inside = folder / inside[0], below
    return folder, next((name for name in names if name in inside and _is_divided_by_class(folder / name)), None)


def _is_divided_by_class(part: Path) -> bool:
    """Return whether a folder called `train` is a part of the data, and not a class of that name."""
    return bool(_folders_in(part)) or find_label_table(part) is not None


def _folders_in(folder: Path) -> list[Path]:
    problem = folder_problem(folder)
    if problem is not None:
        raise DataError(
            f"the data folder {visible(folder)} {problem}",
            next_step="Pass a folder with one sub-folder for each class, or a CSV file with lines `filename,label`.",
        )
    return sub_folders(folder)


def _listed(folder: Path, preprocessing: Preprocessing, num_classes: int) -> LabelledImages:
    if is_label_table(folder):
        return _of_table(read_label_table(folder, num_classes=num_classes), preprocessing)
    folders, table = _folders_in(folder), find_label_table(folder)
    if table is not None and len(folders) != num_classes:
        return _of_table(read_label_table(table, num_classes=num_classes), preprocessing)
    classes = [path.name for path in folders]
    if len(classes) != num_classes:
        named = f" ({', '.join(map(visible, classes[:3]))}{', …' if len(classes) > 3 else ''})" if classes else ""
        raise DataError(
            f"{visible(folder)} has {len(classes)} class folders{named}, but the network has {num_classes} classes",
            next_step="Add one sub-folder for each class, or pass --num-classes as in the training of the weights.",
        )
    found = [find_images(own) for own in folders]
    skipped = Skipped()
    skipped.add_found(found, folder)
    skipped.finish()
    empty = [own for own, inside in zip(folders, found, strict=True) if not inside.paths]
    if empty:
        raise DataError(
            f"{visible(folder)}: {first_names(empty, folder)} contains no image",
            next_step="Add images, or remove the folder.",
        )
    return LabelledImages(
        folder=folder,
        paths=tuple(path for inside in found for path in inside.paths),
        labels=tuple(label for label, inside in enumerate(found) for _ in inside.paths),
        classes=tuple(classes),
        preprocessing=preprocessing,
    )


def _of_table(table: LabelTable, preprocessing: Preprocessing) -> LabelledImages:
    return LabelledImages(
        folder=table.path.parent,
        paths=table.images,
        labels=table.labels,
        classes=table.classes,
        preprocessing=preprocessing,
        tables=(table.path,),
    )


def _divided(images: LabelledImages, seed: int) -> Split[LabelledImages]:
    generator = np.random.default_rng(seed)
    train: list[int] = []
    validation: list[int] = []
    for label, name in enumerate(images.classes):
        members = generator.permutation([index for index, own in enumerate(images.labels) if own == label]).tolist()
        if len(members) == 1:
            raise DataError(
                f"{visible(images.folder / name)} has only one image",
                next_step="Add images: at least 2 are needed, to train on and for evaluation.",
            )
        held_out = max(round(len(members) * HELD_OUT), 1)  # none of a class without images in a CSV file
        validation += members[:held_out]
        train += members[held_out:]
    return Split(train=_part(images, sorted(train)), validation=_part(images, sorted(validation)))


def _part(images: LabelledImages, indices: list[int]) -> LabelledImages:
    return LabelledImages(
        folder=images.folder,
        paths=tuple(images.paths[index] for index in indices),
        labels=tuple(images.labels[index] for index in indices),
        classes=images.classes,
        preprocessing=images.preprocessing,
        tables=images.tables,
    )
