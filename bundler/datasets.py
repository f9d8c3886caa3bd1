"""Pictures → batches: class folders, a flat folder, or seeded synthetic ones that say so."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from bundler import console
from bundler.errors import CalibrationError
from bundler.preprocessing import Preprocessing

__all__ = ["SUFFIXES", "Dataset", "load_pictures", "synthetic_pictures"]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"})

Batch = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Pictures ready for a network: float32 [N, 3, height, width], where they come from, and a digest of each one."""

    source: Literal["pictures", "synthetic"]
    pictures: Batch
    digests: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pictures)

    def __str__(self) -> str:
        return f"{len(self)} {'synthetic ' if self.source == 'synthetic' else ''}pictures"

    @property
    def sha256(self) -> str:
        """Covers each picture's name and bytes, in their order."""
        return hashlib.sha256("\n".join(self.digests).encode()).hexdigest()

    def batches(self, size: int) -> Iterator[Batch]:
        for start in range(0, len(self.pictures), size):
            yield self.pictures[start : start + size]

    def split(self, held_out: int) -> tuple[Dataset, Batch]:
        """Return the set without its last pictures, and those; from a set too small for that, all of it and its first ones."""
        if len(self) < 2 * held_out:
            return self, self.pictures[:held_out]
        kept = replace(self, pictures=self.pictures[:-held_out], digests=self.digests[:-held_out])
        return kept, self.pictures[-held_out:]


def load_pictures(folder: Path, preprocessing: Preprocessing, *, count: int, seed: int) -> Dataset:
    """Read up to `count` pictures of a flat folder or of class folders, chosen by the seed and spread over the classes.

    Unreadable pictures are named, skipped and replaced by others.

    Raises:
        CalibrationError: the folder does not exist, holds no picture, or fewer than two that can be read.
    """
    candidates = _in_order(folder, seed)
    pictures: list[Batch] = []
    skipped: list[str] = []
    digests: list[str] = []
    with console.progress("reading pictures", min(count, len(candidates))) as advance:
        for path in candidates:
            if len(pictures) == count:
                break
            name = os.fsencode(path.relative_to(folder)).decode(errors="backslashreplace")  # a name may be in another encoding
            try:
                content = path.read_bytes()
                with Image.open(path) as picture:
                    pictures.append(preprocessing(picture))
            except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
                console.warn(f"skipped {path}: {_short(error)}")
                skipped.append(name)
                continue
            digests.append(f"{hashlib.sha256(content).hexdigest()}  {name}")
            advance(1)
    if len(pictures) < 2:
        raise CalibrationError(
            f"{len(pictures) or 'none'} of the {len(candidates)} pictures in {folder} can be read, and at least 2 are needed",
            next_step="Give a folder with JPEG or PNG pictures of what the device will see, or leave --calibration out.",
        )
    return Dataset(source="pictures", pictures=np.stack(pictures), digests=tuple(digests), skipped=tuple(skipped))


def _in_order(folder: Path, seed: int) -> list[Path]:
    """Return the folder's pictures, shuffled by the seed and then taken from each class in turn."""
    if not folder.is_dir():
        raise CalibrationError(
            f"the calibration folder {folder} does not exist" if not folder.exists() else f"{folder} is not a folder",
            next_step="Give a folder of pictures: flat, or one sub-folder for each class.",
        )
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise CalibrationError(
            f"the calibration folder {folder} holds no picture ({', '.join(sorted(SUFFIXES))})",
            next_step="Give a folder of pictures: flat, or one sub-folder for each class.",
        )
    order = np.random.default_rng(seed).permutation(len(found))
    classes: dict[Path, list[Path]] = {}
    for index in order:
        classes.setdefault(found[index].parent, []).append(found[index])
    queues = [classes[parent] for parent in sorted(classes)]
    longest = max(len(queue) for queue in queues)
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def synthetic_pictures(preprocessing: Preprocessing, *, count: int, seed: int) -> Dataset:
    """Make `count` seeded pictures of smooth colour fields with edges and noise, between 0 and 255 before normalisation.

    They have a picture's low frequencies and range, which white noise has not, but they are no replacement for real ones:
    the manifest says `synthetic`.
    """
    generator = np.random.default_rng(seed)
    pictures = np.stack([preprocessing(_synthetic(generator, *preprocessing.input_size)) for _ in range(count)])
    digests = tuple(hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures)
    return Dataset(source="synthetic", pictures=pictures, digests=digests)


def _synthetic(generator: np.random.Generator, height: int, width: int) -> Image.Image:
    def field(cells: int, resample: Image.Resampling) -> NDArray[np.float32]:
        coarse = Image.fromarray(generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        return np.asarray(coarse.resize((width, height), resample), dtype=np.float32)

    smooth = field(int(generator.integers(2, 7)), Image.Resampling.BICUBIC)
    edges = field(int(generator.integers(3, 17)), Image.Resampling.NEAREST)
    share = generator.uniform(0.2, 0.8)
    noise = generator.normal(0, generator.uniform(2, 16), (height, width, 1))
    return Image.fromarray(np.clip(share * smooth + (1 - share) * edges + noise, 0, 255).astype(np.uint8))
