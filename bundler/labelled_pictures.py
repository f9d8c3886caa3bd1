"""Pictures with their classes, read from disk when they are needed: to measure accuracy with, and to train."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from bundler.datasets import SUFFIXES
from bundler.errors import DataError
from bundler.preprocessing import Preprocessing

__all__ = [
    "HELD_OUT",
    "LabelledPictures",
    "Split",
    "load_split",
    "load_validation",
    "read_batches",
    "read_picture",
    "sha256_of_files",
]

HELD_OUT = 0.2  # of each class, or of all, where a folder is not divided into train/ and val/

Part = TypeVar("Part")
LabelledBatch = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class LabelledPictures:
    """Files with the index of their class; the folders' sorted names are the classes, as in torchvision's `ImageFolder`."""

    folder: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def __str__(self) -> str:
        return f"{len(self)} pictures of {len(self.classes)} classes"

    @cached_property
    def sha256(self) -> str:
        """Covers each file's name and bytes, in their order."""
        return sha256_of_files(self.folder, self.paths)

    def batches(self, size: int, *, seed: int | None = None, skip: int = 0) -> Iterator[LabelledBatch]:
        """Yield pictures, float32 [N, 3, height, width], and classes, int64 [N], as `read_batches` does."""
        for chosen, pictures in read_batches(self.paths, self.preprocessing, size, seed=seed, skip=skip):
            yield pictures, np.array([self.labels[index] for index in chosen])


def read_batches(
    paths: Sequence[Path], preprocessing: Preprocessing, size: int, *, seed: int | None, skip: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield places in `paths`, int64 [N], and pictures, float32 [N, 3, height, width]: in order, or shuffled by a seed.

    The first `skip` batches are passed over without being read. Shuffled pictures are to be learned from, and so half of them
    are mirrored.

    Raises:
        DataError: a picture cannot be read.
    """
    order, mirrored = np.arange(len(paths)), np.zeros(len(paths), dtype=bool)
    if seed is not None:
        generator = np.random.default_rng(seed)
        order, mirrored = generator.permutation(order), generator.random(len(paths)) < 0.5
    for start in range(skip * size, len(order), size):
        chosen = order[start : start + size]
        pictures = [read_picture(paths[index], preprocessing)[0][:, :, :: -1 if mirrored[index] else 1] for index in chosen]
        yield chosen, np.stack(pictures)


def read_picture(path: Path, preprocessing: Preprocessing) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """Return a picture as a network's input, float32 [3, height, width], and its own width and height.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            return preprocessing(picture), picture.size
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise DataError(
            f"{path} cannot be read: {str(error).splitlines()[0]}",
            next_step="Remove it or replace it; accuracy counts every picture of the folder.",
        ) from error


def sha256_of_files(folder: Path, paths: Iterable[Path]) -> str:
    """Return a digest of each file's name below the folder and its bytes, in their order."""
    lines = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}" for path in paths)
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Split(Generic[Part]):
    """Pictures to train on, and others to measure with."""

    train: Part
    validation: Part


def load_validation(folder: Path, preprocessing: Preprocessing, *, num_classes: int) -> LabelledPictures:
    """List the pictures to measure with: of `folder/val` where there is one, otherwise all of the folder's class folders.

    Raises:
        DataError: there are no class folders, another number than the network's classes, or one is empty.
    """
    return _listed(folder / "val" if (folder / "val").is_dir() else folder, preprocessing, num_classes)


def load_split(folder: Path, preprocessing: Preprocessing, *, num_classes: int, seed: int) -> Split[LabelledPictures]:
    """List `folder/train` and `folder/val`; of a folder without them, a fifth of each class is held out, chosen by the seed.

    Raises:
        DataError: as `load_validation`; or the two have other classes, or a class has a single picture.
    """
    if (folder / "train").is_dir() != (folder / "val").is_dir():
        found, lacking = ("train", "val") if (folder / "train").is_dir() else ("val", "train")
        raise DataError(f"{folder} has {found}/ and no {lacking}/", next_step="Give both, or class folders alone.")
    if (folder / "train").is_dir():
        train, validation = (_listed(folder / part, preprocessing, num_classes) for part in ("train", "val"))
        if train.classes != validation.classes:
            odd = sorted(set(train.classes) ^ set(validation.classes))
            raise DataError(f"{folder}/train and val differ: {', '.join(odd[:5])}", next_step="Give both the same classes.")
        return Split(train=train, validation=validation)
    return _divided(_listed(folder, preprocessing, num_classes), seed)


def _listed(folder: Path, preprocessing: Preprocessing, num_classes: int) -> LabelledPictures:
    if not folder.is_dir():
        raise DataError(
            f"the data folder {folder} does not exist", next_step="Give a folder with one sub-folder for each class."
        )
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if len(classes) != num_classes:
        named = f" ({', '.join(classes[:3])}{', …' if len(classes) > 3 else ''})" if classes else ""
        raise DataError(
            f"{folder} has {len(classes)} class folders{named}, and the network tells {num_classes} classes apart",
            next_step="Give one sub-folder for each class, or --num-classes as the weights were trained for.",
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if not found:
            raise DataError(f"{folder / name} holds no picture", next_step=f"Put some in: {', '.join(sorted(SUFFIXES))}.")
        paths += found
        labels += [label] * len(found)
    return LabelledPictures(
        folder=folder, paths=tuple(paths), labels=tuple(labels), classes=tuple(classes), preprocessing=preprocessing
    )


def _divided(pictures: LabelledPictures, seed: int) -> Split[LabelledPictures]:
    generator = np.random.default_rng(seed)
    train: list[int] = []
    validation: list[int] = []
    for label, name in enumerate(pictures.classes):
        members = generator.permutation([index for index, own in enumerate(pictures.labels) if own == label]).tolist()
        if len(members) < 2:
            raise DataError(
                f"{pictures.folder / name} has a single picture", next_step="Give at least 2, to train on and to measure with."
            )
        held_out = max(round(len(members) * HELD_OUT), 1)
        validation += members[:held_out]
        train += members[held_out:]
    return Split(train=_part(pictures, sorted(train)), validation=_part(pictures, sorted(validation)))


def _part(pictures: LabelledPictures, indices: list[int]) -> LabelledPictures:
    return LabelledPictures(
        folder=pictures.folder,
        paths=tuple(pictures.paths[index] for index in indices),
        labels=tuple(pictures.labels[index] for index in indices),
        classes=pictures.classes,
        preprocessing=pictures.preprocessing,
    )
