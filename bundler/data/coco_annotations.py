"""Read boxes from JSON files in COCO format (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundler.data.image_files import read_bytes
from bundler.data.labels import SLACK, Labels
from bundler.errors import DataError, UnreadableImageError
from bundler.visible import visible

__all__ = ["AnnotatedImage", "CocoAnnotations", "read_coco"]

MAX_BYTES = 128 << 20  # of a file; the one of COCO's validation set has 20 MB
MAX_OBJECTS = 5_000_000  # lists and objects in a file, which take 50 to 250 bytes of memory each
_HINT = "Export the labels in COCO format: images, categories, and annotations with bbox [left, top, width, height]."


@dataclass(frozen=True, kw_only=True)
class AnnotatedImage:
    """An image's file name, its width and height, and its boxes in pixels (left, top, right, bottom)."""

    file_name: str
    size: tuple[int, int] | None
    labels: Labels
    annotations: tuple[str, ...]  # identifiers of the boxes, for messages

    def in_shares(self, size: tuple[int, int], where: str) -> Labels:
        """Return the boxes relative to the image size (0 to 1), clipped to the image.

        Raises:
            DataError: a box is outside of an image of that size; the message names its annotation.
        """
        boxes = self.labels.boxes / (size * 2)
        middle, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        inside = ((middle >= 0) & (middle <= 1) & (sides <= 1 + SLACK)).all(1)
        if not inside.all():
            index = int(np.argmin(inside))
            left, top, right, bottom = self.labels.boxes[index].tolist()
            box = f"[{left:g}, {top:g}, {right - left:g}, {bottom - top:g}]"
            raise DataError(
                f"{where}, annotation {self.annotations[index]}: bbox {box} is outside of"
                f" {visible(self.file_name)}, which has {size[0]} x {size[1]} pixels",
                next_step="Pass the labelled images in their original size; bbox is in pixels of the upright image.",
            )
        return Labels(classes=self.labels.classes, boxes=boxes.clip(0, 1), crowd=self.labels.crowd)


@dataclass(frozen=True, kw_only=True)
class CocoAnnotations:
    """The content of a file: class names by number, and the images in order."""

    path: Path
    classes: tuple[str, ...]
    images: tuple[AnnotatedImage, ...]


def read_coco(path: Path, *, num_classes: int, class_names: Sequence[str] | None = None) -> CocoAnnotations:
    """Read the boxes of a JSON file.

    Categories are numbered by the network's `class_names` if these are known, otherwise in the order of their identifiers, as
    in YOLOv5's converters. A category without boxes that is only the supercategory of all others, as in Roboflow's files, is
    ignored. Boxes with `iscrowd` are kept as regions to ignore; empty boxes are dropped.

    Raises:
        DataError: the file cannot be read, is malformed, or has other classes than the network; the message names the
            annotation.
    """
    where = visible(path)
    document = _document(path)
    images = _by_id(document, "images", where)
    categories = _by_id(document, "categories", where)
    annotations = _list(document, "annotations", where)
    used = {annotation.get("category_id") for annotation in annotations if _is_id(annotation.get("category_id"))}
    numbers, classes = _numbered(categories, used, where, num_classes, class_names)
    rows: dict[Any, list[tuple[str, int, list[float], bool]]] = {identifier: [] for identifier in images}
    for index, annotation in enumerate(annotations):
        name = visible(annotation.get("id", f"number {index + 1}"), 60)
        image, row = _row(annotation, f"{where}, annotation {name}", images, numbers)
        if row[1][2] > row[1][0] and row[1][3] > row[1][1]:
            rows[image].append((name, *row))
    return CocoAnnotations(
        path=path,
        classes=classes,
        images=tuple(
            _image(entry, rows[identifier], f"{where}, image {visible(identifier, 60)}") for identifier, entry in images.items()
        ),
    )


def _document(path: Path) -> dict[str, Any]:
    try:
        content = read_bytes(path, MAX_BYTES)
    except UnreadableImageError as error:
        raise DataError(error.message, next_step="Export the labels of the evaluated images only.") from error
    if content.count(b"{") + content.count(b"[") > MAX_OBJECTS:
        raise DataError(
            f"{visible(path)} has more lists and objects than the limit of {MAX_OBJECTS:,}",
            next_step="Export the labels of fewer images, or without segmentation.",
        )
    try:
        # Not bundler.strict_json: annotation tools write NaN and long numbers into fields that are not used here.
        document = json.loads(content)
    except RecursionError as error:
        raise DataError(f"{visible(path)} is not in COCO format: it is nested too deeply", next_step=_HINT) from error
    except ValueError as error:
        raise DataError(f"{visible(path)} is not JSON: {visible(error, 200)}", next_step=_HINT) from error
    if not isinstance(document, dict):
        raise DataError(f"{visible(path)} is not in COCO format: its top level is not an object", next_step=_HINT)
    return document


def _list(document: dict[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    value = document.get(key)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise DataError(f"{where} is not in COCO format: it has no list of {key}", next_step=_HINT)
    return value


def _by_id(document: dict[str, Any], key: str, where: str) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    for entry in _list(document, key, where):
        identifier = entry.get("id")
        if not _is_id(identifier):
            raise DataError(f"{where}: one of the {key} has no id", next_step=_HINT)
        if identifier in found:
            raise DataError(f"{where}: two of the {key} have the id {visible(identifier, 60)}", next_step=_HINT)
        found[identifier] = entry
    return found


def _is_id(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _numbered(
    categories: dict[Any, dict[str, Any]],
    used: set[Any],
    where: str,
    num_classes: int,
    class_names: Sequence[str] | None,
) -> tuple[dict[Any, int], tuple[str, ...]]:
    """Return the class number for each category identifier, and the class names."""
    ordered = sorted(categories, key=lambda identifier: (isinstance(identifier, str), identifier))
    names = {identifier: str(categories[identifier].get("name", identifier)) for identifier in ordered}
    if len(ordered) > 1 and ordered[0] not in used:
        others = {categories[identifier].get("supercategory") for identifier in ordered[1:]}
        if others == {names[ordered[0]]}:
            del names[ordered[0]]
    if class_names is not None and set(names.values()) <= set(class_names):
        return {identifier: class_names.index(name) for identifier, name in names.items()}, tuple(class_names)
    if len(names) != num_classes:
        listed = ", ".join(visible(name, 40) for name in list(names.values())[:3]) + (", …" if len(names) > 3 else "")
        raise DataError(
            f"{where} has {len(names)} categories ({listed}), but the network has {num_classes} classes",
            next_step="Pass --num-classes as in the training of the weights, or labels with the same classes.",
        )
    return {identifier: number for number, identifier in enumerate(names)}, tuple(names.values())


def _row(
    annotation: dict[str, Any], where: str, images: dict[Any, dict[str, Any]], numbers: dict[Any, int]
) -> tuple[Any, tuple[int, list[float], bool]]:
    """Return an annotation's image, with its class, box (left, top, right, bottom) and iscrowd."""
    image, category = annotation.get("image_id"), annotation.get("category_id")
    if not _is_id(image) or image not in images:
        raise DataError(f"{where}: image_id {visible(image, 60)} is not the id of an image", next_step=_HINT)
    if not _is_id(category) or category not in numbers:
        raise DataError(f"{where}: category_id {visible(category, 60)} is not the id of a category", next_step=_HINT)
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(number) for number in box):
        raise DataError(f"{where}: bbox {visible(box, 60)} is not [left, top, width, height]", next_step=_HINT)
    left, top, width, height = (float(number) for number in box)
    if width < 0 or height < 0:
        raise DataError(f"{where}: bbox {visible(box, 60)} has a negative width or height", next_step=_HINT)
    return image, (numbers[category], [left, top, left + width, top + height], annotation.get("iscrowd") in (1, True))


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 and math.isfinite(value)


def _image(entry: dict[str, Any], rows: list[tuple[str, int, list[float], bool]], where: str) -> AnnotatedImage:
    name, width, height = entry.get("file_name"), entry.get("width"), entry.get("height")
    if not isinstance(name, str) or not name:
        raise DataError(f"{where} has no file_name", next_step=_HINT)
    size = None
    if isinstance(width, int | float) and isinstance(height, int | float):
        if not all(_is_finite(side) and side == int(side) > 0 for side in (width, height)):
            raise DataError(f"{where}: {visible(width, 40)} x {visible(height, 40)} is not a valid size", next_step=_HINT)
        size = int(width), int(height)
    boxes: NDArray[np.float64] = np.array([box for _, _, box, _ in rows], np.float64).reshape(-1, 4)
    return AnnotatedImage(
        file_name=name,
        size=size,
        labels=Labels(
            classes=np.array([kind for _, kind, _, _ in rows], np.int64),
            boxes=boxes,
            crowd=np.array([crowd for *_, crowd in rows], np.bool_),
        ),
        annotations=tuple(identifier for identifier, *_ in rows),
    )
