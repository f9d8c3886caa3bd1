from __future__ import annotations

from pathlib import Path

import pytest

from bundler.errors import ImageError
from bundler.files.tar_files import Member
from bundler.images.custom_base import find_python
from bundler.images.layers import Layer, write_layer

PATH = "/usr/local/bin:/usr/bin"


def _layers(folder: Path, *layers: dict[str, str]) -> list[Layer]:
    """Return a layer for each mapping of paths to link targets; an empty string stands for a program."""
    return [
        write_layer(folder / f"{index}.tar", [Member(name=name, mode=0o755, link=link) for name, link in names.items()])
        for index, names in enumerate(layers)
    ]


def _found(layers: list[Layer]) -> str:
    return find_python(layers, PATH, "python:3.11-slim", "3.11")


def test_the_first_directory_of_the_path_counts(tmp_path: Path) -> None:
    debian = {"usr/bin/python3": "python3.11", "usr/bin/python3.11": ""}
    own = {"usr/local/bin/python3": "python3.11", "usr/local/bin/python3.11": ""}
    assert _found(_layers(tmp_path, debian, own)) == "/usr/local/bin/python3"
    assert _found(_layers(tmp_path, debian)) == "/usr/bin/python3"


def test_a_whiteout_removes_the_file_of_a_lower_layer(tmp_path: Path) -> None:
    lower = {"usr/local/bin/python3": "", "usr/bin/python3": ""}
    assert _found(_layers(tmp_path, lower, {"usr/local/bin/.wh.python3": ""})) == "/usr/bin/python3"


def test_another_python_is_refused_by_its_version(tmp_path: Path) -> None:
    layers = _layers(tmp_path, {"usr/bin/python3": "/usr/bin/python3.12", "usr/bin/python3.12": ""})
    with pytest.raises(ImageError, match=r"python:3\.11-slim has Python 3\.12; the target's runtime requires 3\.11"):
        _found(layers)


def test_an_image_without_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no python3 on its PATH"):
        _found(_layers(tmp_path, {"usr/bin/sh": ""}))
