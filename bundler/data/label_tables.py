"""Read class labels of images from CSV files with the columns `filename,label`."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bundler.data.class_names import read_class_list, require_count
from bundler.data.image_files import read_bytes
from bundler.data.image_folders import IMAGE_SUFFIXES, first_names
from bundler.errors import DataError, UnreadableImageError
from bundler.visible import visible

__all__ = ["LabelTable", "find_label_table", "is_label_table", "read_label_table"]

MAX_BYTES = 64 << 20  # of a CSV file: a million lines
_SUFFIXES = frozenset({".csv", ".tsv"})
_FILE_COLUMNS = (
    "filename",
    "file_name",
    "file",
    "image",
    "image_name",
    "image_path",
    "filepath",
    "path",
    "img",
    "image_id",
    "id",
)
_LABEL_COLUMNS = ("label", "class", "class_name", "category", "target", "label_id", "class_id", "y")
_Line = tuple[int, list[str]]  # its number from 1, and its cells
_HINT = "Each line is `filename,label`: the label is a class name or a number from 0, the file is beside the CSV or in images/."


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """Images with their class numbers, in the order of the lines; `classes` are the names by number."""

    path: Path
    images: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Row:
    line: int
    image: Path
    label: str


def is_label_table(path: Path) -> bool:
    """Return whether a path is a CSV or TSV file, by its name."""
    return path.suffix.lower() in _SUFFIXES and os.path.isfile(path)  # noqa: PTH113  no error for long names


def find_label_table(folder: Path) -> Path | None:
    """Return the only CSV file in a folder; None if there is none or several."""
    found = [path for path in folder.iterdir() if is_label_table(path) and not path.name.startswith(".")]
    return found[0] if len(found) == 1 else None


def read_label_table(path: Path, *, num_classes: int) -> LabelTable:
    """Read a CSV file of images and classes, separated by commas, semicolons or tabs, with or without a header line.

    Labels are numbers from 0 to `num_classes - 1`, or names; the sorted names are the classes, unless a `classes.txt` beside
    the file lists them in another order. Image names may lack their suffix.

    Raises:
        DataError: a line is malformed, an image is missing or has two classes, or a label is not a class; with the line.
    """
    rows = _distinct(_rows(path), path)
    labels, classes = _numbered(rows, path, num_classes)
    return LabelTable(path=path, images=tuple(row.image for row in rows), labels=labels, classes=classes)


def _rows(path: Path) -> list[_Row]:
    lines = _lines(path)
    if not lines:
        raise DataError(f"{visible(path)} is empty", next_step=_HINT)
    lines, file_column, label_column = _columns(lines, path)
    rows: list[_Row] = []
    missing: list[tuple[int, str]] = []
    for number, cells in lines:
        if len(cells) <= max(file_column, label_column):
            needed = max(file_column, label_column) + 1
            raise DataError(
                f"{visible(path)}, line {number}: at least {needed} columns are needed (got {len(cells)})", next_step=_HINT
            )
        name, label = cells[file_column].strip(), cells[label_column].strip()
        if not name or not label:
            raise DataError(f"{visible(path)}, line {number}: the {'label' if name else 'filename'} is empty", next_step=_HINT)
        image = _found(path.parent, name)
        if image is None:
            missing.append((number, name))
        else:
            rows.append(_Row(line=number, image=image, label=label))
    if missing:
        number, name = missing[0]
        more = f" (and {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise DataError(
            f"{visible(path)}, line {number}: {visible(name)}{more} is not in {visible(path.parent)} or its images/",
            next_step="Add the images beside the CSV file, or remove their lines.",
        )
    if not rows:
        raise DataError(f"{visible(path)} lists no image", next_step=_HINT)
    return rows


def _columns(lines: list[_Line], path: Path) -> tuple[list[_Line], int, int]:
    """Return the lines without the header, and the columns of file name and label."""
    number, cells = lines[0]
    first = [cell.strip().lower() for cell in cells]
    file_column = next((first.index(name) for name in _FILE_COLUMNS if name in first), None)
    label_column = next((first.index(name) for name in _LABEL_COLUMNS if name in first), None)
    if file_column is not None and label_column is not None:
        return lines[1:], file_column, label_column
    if len(first) != 2:
        raise DataError(
            f"{visible(path)}, line {number}: {len(first)} columns without a header that names them",
            next_step=f"Add a header with `filename` and `label`. {_HINT}",
        )
    in_other_words = _found(path.parent, cells[0]) is None and len(lines) > 1 and _found(path.parent, lines[1][1][0])
    return lines[1:] if in_other_words else lines, 0, 1


def _lines(path: Path) -> list[_Line]:
    """Return the non-empty lines with their numbers."""
    try:
        content = read_bytes(path, MAX_BYTES)
    except UnreadableImageError as error:
        raise DataError(error.message, next_step=_HINT) from error
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise DataError(f"{visible(path)}, line {number}: it is not UTF-8", next_step="Save it as UTF-8.") from error
    start = text.lstrip().partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=start.count), strict=True)
    lines: list[_Line] = []
    try:
        lines.extend((reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells))
    except csv.Error as error:
        raise DataError(f"{visible(path)}, line {reader.line_num}: {visible(error)}", next_step=_HINT) from error
    return lines


def _found(folder: Path, name: str) -> Path | None:
    """Return the file of that name in a folder or in its `images`; never one outside of the folder."""
    relative = Path(name.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts or not relative.name or "\0" in name:
        return None
    for parent in (folder, folder / "images"):
        path = parent / relative
        suffixes = (
            ("",) if path.suffix.lower() in IMAGE_SUFFIXES else ("", ".jpg", ".png", ".jpeg", ".JPG", ".webp", ".bmp", ".tif")
        )
        for suffix in suffixes:
            candidate = path.with_name(path.name + suffix)
            try:
                if candidate.is_file():
                    return candidate
            except OSError:  # the name is too long
                return None
    return None


def _distinct(rows: Sequence[_Row], path: Path) -> list[_Row]:
    """Return the rows without duplicates.

    Raises:
        DataError: an image has two different labels.
    """
    first: dict[Path, _Row] = {}
    for row in rows:
        earlier = first.setdefault(row.image, row)
        if earlier.label != row.label:
            raise DataError(
                f"{visible(path)}, line {row.line}: {first_names([row.image], path.parent)} is {visible(row.label)}, but"
                f" {visible(earlier.label)} in line {earlier.line}",
                next_step="Label each image once.",
            )
    return list(first.values())


def _numbered(rows: Sequence[_Row], path: Path, num_classes: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    names = _names_beside(path, num_classes)
    if all(_is_number(row.label) for row in rows):
        for row in rows:
            if int(row.label) not in range(num_classes):
                raise DataError(
                    f"{visible(path)}, line {row.line}: label {visible(row.label)} is not a class of the network (0 to"
                    f" {num_classes - 1})",
                    next_step="Number the classes from 0, or pass --num-classes as in the training of the weights.",
                )
        return tuple(int(row.label) for row in rows), names or tuple(map(str, range(num_classes)))
    classes = names or tuple(sorted({row.label for row in rows}))
    if len(classes) != num_classes:
        listed = ", ".join(map(visible, classes[:3])) + (", …" if len(classes) > 3 else "")
        raise DataError(
            f"{visible(path)} has {len(classes)} classes ({listed}), but the network has {num_classes} classes",
            next_step="List all classes in a classes.txt beside it, or pass --num-classes as in the training of the weights.",
        )
    numbers = {name: number for number, name in enumerate(classes)}
    for row in rows:
        if row.label not in numbers:
            raise DataError(
                f"{visible(path)}, line {row.line}: label {visible(row.label)} is not in classes.txt",
                next_step="Add it there, in the order of the network's classes.",
            )
    return tuple(numbers[row.label] for row in rows), classes


def _is_number(label: str) -> bool:
    return label.isascii() and label.removeprefix("-").isdigit() and len(label) < 10


def _names_beside(path: Path, num_classes: int) -> tuple[str, ...] | None:
    names = path.parent / "classes.txt"
    if not names.is_file():
        return None
    classes = read_class_list(names)
    require_count(classes, names, num_classes)
    return classes
