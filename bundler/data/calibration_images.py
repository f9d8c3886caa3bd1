"""Pictures → batches: class folders, a flat folder, or seeded synthetic ones that say so."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bundler import console
from bundler.data.image_files import decode_image, digest_of, name_of, read_bytes
from bundler.data.image_folders import Skipped, find_images, folder_problem
from bundler.data.preprocessing import Preprocessing
from bundler.errors import CalibrationError, UnreadableImageError
from bundler.visible import visible

__all__ = [
    "Dataset",
    "load_pictures",
    "require_unlike",
    "synthetic_pictures",
]

ALIKE = 2.0  # levels of 8 bits: frames of a scene that stands still differ by their noise
_FOLDER_HINT = "Give a folder of images: flat, or one sub-folder for each class."

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
    """Read up to `count` images of a flat folder or of class folders, chosen by the seed and spread over the classes.

    Files that cannot be used are named, skipped and replaced by others.

    Raises:
        CalibrationError: the folder does not exist, holds no image, fewer than two that can be read, or images that are alike.
    """
    problem = folder_problem(folder)
    if problem is not None:
        raise CalibrationError(f"the calibration folder {visible(folder)} {problem}", next_step=_FOLDER_HINT)
    found = find_images(folder)
    skipped = Skipped()
    skipped.add_found([found], folder)
    if not found.paths:
        raise CalibrationError(f"the calibration folder {visible(folder)} holds no image", next_step=_FOLDER_HINT)
    candidates = _in_order(found.paths, seed)
    pictures: list[Batch] = []
    unusable = [path for path, _ in found.unusable]
    digests: list[str] = []
    with console.progress("reading images", min(count, len(candidates))) as advance:
        for path in candidates:
            if len(pictures) == count:
                break
            try:
                content = read_bytes(path)
                pictures.append(preprocessing(decode_image(content, path)))
            except UnreadableImageError as error:
                skipped.add(path, error.reason)
                unusable.append(path)
                continue
            digests.append(digest_of(content, path, folder))
            advance(1)
    skipped.finish()
    if len(pictures) < 2:
        raise CalibrationError(
            f"{len(pictures) or 'none'} of the {len(candidates)} images in {visible(folder)} can be read, and at least 2 are"
            " needed",
            next_step="Give a folder of JPEG or PNG images like those that the device will get, or leave --calibration out.",
        )
    require_unlike(np.stack(pictures), preprocessing, f"the {len(pictures)} calibration images in {visible(folder)}")
    return Dataset(
        source="pictures",
        pictures=np.stack(pictures),
        digests=tuple(digests),
        skipped=tuple(name_of(path, folder) for path in unusable),
    )


def _in_order(paths: Sequence[Path], seed: int) -> list[Path]:
    """Return the images, shuffled by the seed and then taken from each class in turn."""
    order = np.random.default_rng(seed).permutation(len(paths))
    classes: dict[Path, list[Path]] = {}
    for index in order:
        classes.setdefault(paths[index].parent, []).append(paths[index])
    queues = [classes[parent] for parent in sorted(classes)]
    longest = max(len(queue) for queue in queues)
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]


def require_unlike(images: Batch, preprocessing: Preprocessing, name: str) -> None:
    """Refuse images, float32 [N, 3, H, W], that are all nearly the same: neither ranges nor errors can be seen on them.

    They are, where each differs from the first by less than `ALIKE` levels of 8 bits, on the average over its pixels.

    Raises:
        CalibrationError: they are alike.
    """
    levels = 255 * np.array(preprocessing.std, np.float32).reshape(3, 1, 1)
    if any(float(np.abs((image - images[0]) * levels).mean()) >= ALIKE for image in images[1:]):
        return
    black = float((images[0] * levels + 255 * np.array(preprocessing.mean, np.float32).reshape(3, 1, 1)).max()) < ALIKE
    raise CalibrationError(
        f"{name} are alike: {'they are all black' if black else 'they show the same'}, within {ALIKE:g} of 255 levels",
        next_step="Give different images, like those that the device will get: --calibration DIR.",
    )


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
