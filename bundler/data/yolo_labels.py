"""Read boxes from YOLO text files (https://docs.ultralytics.com/datasets/detect/): one file per image, one line per object."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bundler.data.image_files import read_bytes
from bundler.data.labels import SLACK, Labels
from bundler.errors import DataError, UnreadableImageError
from bundler.visible import visible

__all__ = ["label_path", "read_yolo_labels"]

MAX_BYTES = 16 << 20  # of a file: a hundred thousand polygons
_HINT = "Each line is `class centre-x centre-y width height`, the last four relative to the image size (0 to 1)."


def label_path(image: Path, folder: Path) -> Path | None:
    """Return the label file of an image in `folder`: beside it, or in `labels` instead of `images`; or None."""
    places = [image.with_suffix(".txt")]
    parts = image.relative_to(folder).parts[:-1]
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        places.append(folder.joinpath(*parts[:last], "labels", *parts[last + 1 :], image.with_suffix(".txt").name))
    return next((place for place in places if place.is_file()), None)


def read_yolo_labels(path: Path, num_classes: int) -> Labels:
    """Read a file with a line for each object: `class centre-x centre-y width height`, or `class x y x y x y …`, a polygon.

    Polygons of segmentation labels are replaced by their bounding boxes, as in YOLOv5.

    Raises:
        DataError: a line cannot be parsed, is not a box within the image, or has an unknown class; with the line number.
    """
    try:
        lines = read_bytes(path, MAX_BYTES).decode("utf-8-sig").splitlines()
    except UnreadableImageError as error:
        raise DataError(error.message, next_step="Write a text file with one line for each object.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{visible(path)} cannot be read: it is not UTF-8", next_step="Write a text file with one line for each object."
        ) from error
    rows = [
        _read_line(line.split(), f"{visible(path)}, line {number}", num_classes)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    values = np.array(rows, np.float64).reshape(-1, 5)
    middle, half = values[:, 1:3], values[:, 3:5] / 2
    return Labels(classes=values[:, 0].astype(np.int64), boxes=np.hstack([middle - half, middle + half]).clip(0, 1))


def _read_line(words: list[str], where: str, num_classes: int) -> list[float]:
    """Return class, centre x, centre y, width, height."""
    try:
        numbers = [float(word) for word in words]
    except ValueError as error:
        raise DataError(f"{where}: {visible(error, 200)}", next_step=_HINT) from error
    if len(numbers) == 6:
        raise DataError(
            f"{where}: 6 numbers instead of 5; the output of a detector has a confidence at the end",
            next_step=f"Pass labels, or remove the last column. {_HINT}",
        )
    if len(numbers) < 5 or len(numbers) % 2 == 0:
        raise DataError(
            f"{where}: expected 5 numbers, or a class and the x and y of a polygon (got {len(numbers)} numbers)",
            next_step=_HINT,
        )
    kind = numbers[0]
    if kind not in range(num_classes):
        raise DataError(
            f"{where}: {visible(words[0], 40)} is not a class of the network (0 to {num_classes - 1})",
            next_step="Pass --num-classes as in the training of the weights, or labels with the same classes.",
        )
    box = numbers[1:] if len(numbers) == 5 else _around(numbers[1:])
    x, y, width, height = box
    if not (0 <= x <= 1 and 0 <= y <= 1 and 0 < width <= 1 + SLACK and 0 < height <= 1 + SLACK):
        raise DataError(f"{where}: {visible(' '.join(words[1:]), 80)} is not a box within the image", next_step=_HINT)
    return [kind, *box]


def _around(polygon: list[float]) -> list[float]:
    """Return centre x, centre y, width and height of the bounding box of x, y, x, y, …."""
    across, down = polygon[::2], polygon[1::2]
    if not all(-SLACK <= value <= 1 + SLACK for value in polygon):
        return [np.nan] * 4
    left, right, top, bottom = min(across), max(across), min(down), max(down)
    return [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
