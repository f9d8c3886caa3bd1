"""Calibration images: from a folder, flat or with class folders, or seeded synthetic ones."""

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
    "CalibrationImages",
    "load_calibration_images",
    "require_unlike",
    "synthetic_images",
]

ALIKE = 2.0  # mean difference in 8-bit levels; frames of a static scene differ by their noise
_FOLDER_HINT = "Pass a folder of images, flat or with one sub-folder for each class."

Batch = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class CalibrationImages:
    """Preprocessed images, their source, and a digest of each.

    Args:
        source: "pictures" from files, or "synthetic"; as in the manifest.
        pictures: float32 [N, 3, height, width].
        digests: one line for each image: SHA-256 and name.
        skipped: names of files that could not be used.
    """

    source: Literal["pictures", "synthetic"]
    pictures: Batch
    digests: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pictures)

    def __str__(self) -> str:
        return f"{len(self)} {'synthetic ' if self.source == 'synthetic' else ''}images"

    @property
    def sha256(self) -> str:
        """SHA-256 over the names and bytes of all images, in order."""
        return hashlib.sha256("\n".join(self.digests).encode()).hexdigest()

    def batches(self, size: int) -> Iterator[Batch]:
        for start in range(0, len(self.pictures), size):
            yield self.pictures[start : start + size]

    def split(self, held_out: int) -> tuple[CalibrationImages, Batch]:
        """Return the set without its last `held_out` images, and these images.

        A set with fewer than twice as many images is returned whole, together with its first images.
        """
        if len(self) < 2 * held_out:
            return self, self.pictures[:held_out]
        kept = replace(self, pictures=self.pictures[:-held_out], digests=self.digests[:-held_out])
        return kept, self.pictures[-held_out:]


def load_calibration_images(folder: Path, preprocessing: Preprocessing, *, count: int, seed: int) -> CalibrationImages:
    """Read up to `count` images of a flat folder or of class folders, sampled with the seed and balanced over the classes.

    Unreadable files are reported, skipped and replaced by others.

    Raises:
        CalibrationError: the folder does not exist, contains fewer than two readable images, or only nearly equal ones.
    """
    problem = folder_problem(folder)
    if problem is not None:
        raise CalibrationError(f"the calibration folder {visible(folder)} {problem}", next_step=_FOLDER_HINT)
    found = find_images(folder)
    skipped = Skipped()
    skipped.add_found([found], folder)
    if not found.paths:
        raise CalibrationError(f"the calibration folder {visible(folder)} contains no image", next_step=_FOLDER_HINT)
    candidates = _in_order(found.paths, seed)
    images: list[Batch] = []
    unusable = [path for path, _ in found.unusable]
    digests: list[str] = []
    with console.progress("reading images", min(count, len(candidates))) as advance:
        for path in candidates:
            if len(images) == count:
                break
            try:
                content = read_bytes(path)
                images.append(preprocessing(decode_image(content, path)))
            except UnreadableImageError as error:
                skipped.add(path, error.reason)
                unusable.append(path)
                continue
            digests.append(digest_of(content, path, folder))
            advance(1)
    skipped.finish()
    if len(images) < 2:
        raise CalibrationError(
            f"{len(images) or 'none'} of the {len(candidates)} images in {visible(folder)} can be read; at least 2 are needed",
            next_step="Pass a folder of JPEG or PNG images like those of the device, or omit --calibration.",
        )
    require_unlike(np.stack(images), preprocessing, f"the {len(images)} calibration images in {visible(folder)}")
    return CalibrationImages(
        source="pictures",
        pictures=np.stack(images),
        digests=tuple(digests),
        skipped=tuple(name_of(path, folder) for path in unusable),
    )


def _in_order(paths: Sequence[Path], seed: int) -> list[Path]:
    """Return the images shuffled with the seed, then alternating between the classes."""
    order = np.random.default_rng(seed).permutation(len(paths))
    classes: dict[Path, list[Path]] = {}
    for index in order:
        classes.setdefault(paths[index].parent, []).append(paths[index])
    queues = [classes[parent] for parent in sorted(classes)]
    longest = max(len(queue) for queue in queues)
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]


def require_unlike(images: Batch, preprocessing: Preprocessing, name: str) -> None:
    """Refuse nearly equal images, float32 [N, 3, H, W]: ranges and errors cannot be estimated from them.

    `name` is the subject of the message.

    Raises:
        CalibrationError: each image differs from the first by less than `ALIKE` 8-bit levels on average.
    """
    levels = 255 * np.array(preprocessing.std, np.float32).reshape(3, 1, 1)
    if any(float(np.abs((image - images[0]) * levels).mean()) >= ALIKE for image in images[1:]):
        return
    black = float((images[0] * levels + 255 * np.array(preprocessing.mean, np.float32).reshape(3, 1, 1)).max()) < ALIKE
    raise CalibrationError(
        f"{name} are {'all black' if black else 'nearly equal'}, within {ALIKE:g} of 255 levels",
        next_step="Pass different images like those of the device: --calibration DIR.",
    )


def synthetic_images(preprocessing: Preprocessing, *, count: int, seed: int) -> CalibrationImages:
    """Generate `count` seeded images of smooth colour fields with edges and noise, 0 to 255 before normalisation.

    Unlike white noise they have the low frequencies and the range of photographs, but they do not replace real images: the
    manifest has `synthetic` as their source.
    """
    generator = np.random.default_rng(seed)
    images = np.stack([preprocessing(_synthetic(generator, *preprocessing.input_size)) for _ in range(count)])
    digests = tuple(hashlib.sha256(image.tobytes()).hexdigest() for image in images)
    return CalibrationImages(source="synthetic", pictures=images, digests=digests)


def _synthetic(generator: np.random.Generator, height: int, width: int) -> Image.Image:
    def field(cells: int, resample: Image.Resampling) -> NDArray[np.float32]:
        coarse = Image.fromarray(generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        return np.asarray(coarse.resize((width, height), resample), dtype=np.float32)

    smooth = field(int(generator.integers(2, 7)), Image.Resampling.BICUBIC)
    edges = field(int(generator.integers(3, 17)), Image.Resampling.NEAREST)
    share = generator.uniform(0.2, 0.8)
    noise = generator.normal(0, generator.uniform(2, 16), (height, width, 1))
    return Image.fromarray(np.clip(share * smooth + (1 - share) * edges + noise, 0, 255).astype(np.uint8))
