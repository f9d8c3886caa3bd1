"""Boxes from YOLO's text files (https://docs.ultralytics.com/datasets/detect/): one for each image, a line for each object."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bundler.data.image_files import read_bytes
from bundler.data.labels import SLACK, Labels
from bundler.errors import DataError, UnreadableImageError
from bundler.visible import visible

__all__ = ["label_path", "read_yolo_labels"]

MAX_BYTES = 16 << 20  # of a file: a hundred thousand polygons
_HINT = "A line is `class centre-x centre-y width height`, the last four in shares of the image's sides, 0 to 1."


def label_path(image: Path, folder: Path) -> Path | None:
    """Return the label file of an image in `folder`: beside it, or below `labels` where that one is below `images`."""
    places = [image.with_suffix(".txt")]
    parts = image.relative_to(folder).parts[:-1]
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        places.append(folder.joinpath(*parts[:last], "labels", *parts[last + 1 :], image.with_suffix(".txt").name))
    return next((place for place in places if place.is_file()), None)


def read_yolo_labels(path: Path, num_classes: int) -> Labels:
    """Read a file with a line for each object: `class centre-x centre-y width height`, or `class x y x y x y …`, a polygon.

    Of a polygon, as files for segmentation have it, the box around it is taken, as YOLOv5 does.

    Raises:
        DataError: naming the line: it cannot be read, is no box within the image, or its class is none of the network's.
    """
    try:
        lines = read_bytes(path, MAX_BYTES).decode("utf-8-sig").splitlines()
    except UnreadableImageError as error:
        raise DataError(error.message, next_step="Write one line for each object, as text.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{visible(path)} cannot be read: it is not UTF-8", next_step="Write one line for each object, as text."
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
            f"{where}: 6 numbers instead of 5; a detector's own results have a confidence at the end",
            next_step=f"Give labels, or remove the last column. {_HINT}",
        )
    if len(numbers) < 5 or len(numbers) % 2 == 0:
        raise DataError(f"{where}: {len(numbers)} numbers instead of 5, or of a class and a polygon's x and y", next_step=_HINT)
    kind = numbers[0]
    if kind not in range(num_classes):
        raise DataError(
            f"{where}: class {visible(words[0], 40)}, and the network's are 0 to {num_classes - 1}",
            next_step="Give --num-classes as the weights were trained for, or labels of the same classes.",
        )
    box = numbers[1:] if len(numbers) == 5 else _around(numbers[1:])
    x, y, width, height = box
    if not (0 <= x <= 1 and 0 <= y <= 1 and 0 < width <= 1 + SLACK and 0 < height <= 1 + SLACK):
        raise DataError(f"{where}: {visible(' '.join(words[1:]), 80)} is no box in an image", next_step=_HINT)
    return [kind, *box]


def _around(polygon: list[float]) -> list[float]:
    """Return centre x, centre y, width and height of the box around x, y, x, y, …."""
    across, down = polygon[::2], polygon[1::2]
    if not all(-SLACK <= value <= 1 + SLACK for value in polygon):
        return [np.nan] * 4
    left, right, top, bottom = min(across), max(across), min(down), max(down)
    return [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
