"""Class names of labelled data: `classes.txt`, and the `names`, `nc`, `path`, `train` and `val` of a `data.yaml`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from bundler.data.image_files import read_bytes
from bundler.errors import DataError, UnreadableImageError
from bundler.visible import visible

__all__ = ["DataYaml", "folder_of", "read_class_list", "read_data_yaml", "require_count"]

MAX_BYTES = 1 << 20  # of such a file

_KEY = re.compile(r"([A-Za-z_]\w*)\s*:(?:\s+(.*))?$")
_ITEM = re.compile(r"\s*-\s+(.*)$")
_PAIR = re.compile(r"\s+(\d{1,6})\s*:\s+(.*)$")
# Unterminated quotes match to the end of the text: restarting at each of them would take quadratic time.
_PART = re.compile(r"""'[^']*(?:'|$)|"(?:[^"\\]|\\.)*(?:"|$)|[\]}]|[^,'"\[\]{}\s][^,\[\]{}\n]*""")
_HINT = "Write names as a list, `names: [cat, dog]`, or one on each line, `  0: cat`."


@dataclass(frozen=True, kw_only=True)
class DataYaml:
    """The content of a dataset's YAML file: class names by number, and the folders of its parts, as written."""

    names: tuple[str, ...] | None
    root: str | None
    train: str | None
    validation: str | None


def read_class_list(path: Path) -> tuple[str, ...]:
    """Return the names in a file with one on each line.

    Raises:
        DataError: it cannot be read.
    """
    return tuple(line.strip() for line in _text(path).splitlines() if line.strip())


def require_count(names: tuple[str, ...], path: Path, num_classes: int) -> None:
    """Require one name for each class of the network.

    Raises:
        DataError: the number of names differs.
    """
    if len(names) != num_classes:
        raise DataError(
            f"{visible(path)} has {len(names)} class names, but the network has {num_classes} classes",
            next_step="Pass --num-classes as in the training of the weights, or data with the same classes.",
        )


def read_data_yaml(path: Path) -> DataYaml:
    """Read `names`, `nc`, `path`, `train` and `val` of a YAML file as YOLOv5, Ultralytics and Roboflow write it.

    Supported are scalars, and for `names` a list on one or several lines or a mapping from numbers to names; the rest of the
    file is ignored. There is no YAML parser among the dependencies.

    Raises:
        DataError: the file cannot be read, or a name cannot be parsed.
    """
    lines = [_without_comment(line) for line in _text(path).splitlines()]
    values: dict[str, str] = {}
    names: tuple[str, ...] | None = None
    for number, line in enumerate(lines):
        match = _KEY.match(line)
        if match is None:
            continue
        key, value = match[1], (match[2] or "").strip()
        if key == "names":
            names = _names(value, lines[number + 1 :], f"{visible(path)}, line {number + 1}")
        elif key in ("path", "train", "val", "nc") and value and value[0] not in "[{&*|>":
            values[key] = _unquoted(value)
    count = values.get("nc")
    if names is not None and count is not None and count.isdigit() and int(count[:9]) != len(names):
        raise DataError(f"{visible(path)}: nc is {count}, but there are {len(names)} names", next_step="Correct one of them.")
    return DataYaml(names=names, root=values.get("path"), train=values.get("train"), validation=values.get("val"))


def _names(value: str, following: list[str], where: str) -> tuple[str, ...]:
    if value.startswith(("[", "{")):
        return _names_in_brackets("\n".join((value, *following)), where)
    if value:
        raise DataError(f"{where}: {visible(value[:60])} is not a list of names", next_step=_HINT)
    items: list[str] = []
    numbered: list[tuple[int, str]] = []
    for line in following:
        item, pair = _ITEM.match(line), _PAIR.match(line)
        if item:
            items.append(_unquoted(item[1].strip()))
        elif pair:
            numbered.append((int(pair[1]), _unquoted(pair[2].strip())))
        elif line[:1].isspace():
            raise DataError(f"{where}: {visible(line.strip()[:60])} is not a name", next_step=_HINT)
        elif line:
            break
    return tuple(items) if items else _in_sequence(numbered, where)


def _names_in_brackets(text: str, where: str) -> tuple[str, ...]:
    parts: list[str] = []
    for part in _PART.findall(text[1:]):
        if part in ("]", "}"):
            break
        parts.append(part.strip())
    else:
        raise DataError(f"{where}: the list of names has no closing bracket", next_step=_HINT)
    if text[0] == "[":
        return tuple(_unquoted(part) for part in parts if part)
    pairs = [re.fullmatch(r"(\d{1,6})\s*:\s*(.+)", part) for part in parts if part]
    if not all(pairs):
        raise DataError(f"{where}: the names are not numbered", next_step=_HINT)
    return _in_sequence([(int(pair[1]), _unquoted(pair[2])) for pair in pairs if pair], where)


def _in_sequence(numbered: list[tuple[int, str]], where: str) -> tuple[str, ...]:
    if sorted(number for number, _ in numbered) != list(range(len(numbered))):
        raise DataError(f"{where}: the names are not numbered consecutively from 0", next_step=_HINT)
    return tuple(name for _, name in sorted(numbered))


def _without_comment(line: str) -> str:
    for match in re.finditer(r"""'[^']*(?:'|$)|"(?:[^"\\]|\\.)*(?:"|$)|(?:^|(?<=\s))#""", line):
        if match[0] == "#":
            return line[: match.start()].rstrip()
    return line.rstrip()


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == "'":
        return value[1:-1].replace("''", "'")
    if len(value) > 1 and value[0] == value[-1] == '"':
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return value


def _text(path: Path) -> str:
    try:
        content = read_bytes(path, MAX_BYTES)
    except UnreadableImageError as error:
        raise DataError(error.message, next_step="Correct the file, or remove it.") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{visible(path)} is not UTF-8", next_step="Save it as UTF-8.") from error


def folder_of(part: str | None, yaml: DataYaml, folder: Path) -> Path | None:
    """Return the folder that the YAML file in `folder` gives for a part of the data, if it is within `folder`."""
    for root in (yaml.root or "", ""):
        relative = os.path.normpath(os.path.join(root, part or ""))  # noqa: PTH118
        while relative.startswith("../"):  # as in Roboflow's files, where ../ means the file's own folder
            relative = relative[3:]
        if part and not os.path.isabs(relative) and (folder / relative).is_dir():  # noqa: PTH117
            return folder / relative
    return None
