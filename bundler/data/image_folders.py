"""Find image files in folders, in a reproducible order."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bundler import console
from bundler.data import decoding
from bundler.data.image_files import name_of, reason_of
from bundler.plain_files import kind_of, open_regular
from bundler.visible import visible

__all__ = ["FoundImages", "Skipped", "find_images", "first_names", "folder_problem", "sub_folders"]

NAMED = 5  # files that a warning lists before "and N more"

_IMAGES = """
    .jpg .jpeg .jpe .jfif .jif .png .apng .bmp .dib .webp .tif .tiff .gif .ppm .pgm .pbm .pnm .pfm .avif .avifs .mpo
    .heic .heif .hif .jp2 .jxl
"""
_OTHERS = """
    .txt .json .jsonl .csv .tsv .xml .yaml .yml .toml .ini .cfg .names .data .md .rst .html .htm .pdf .log .lst .sh .py .ipynb
    .npy .npz .pkl .pickle .pt .pth .onnx .safetensors .weights .h5 .hdf5 .mat .db .sqlite .parquet .arrow .tfrecord .cache
    .zip .gz .tgz .tar .xz .bz2 .7z .rar .doc .docx .xls .xlsx .mp4 .avi .mov .mkv .webm .wav .mp3 .svg .psd .xmp .aae .lock
    .license .sha256 .md5 .bak .tmp
"""
IMAGE_SUFFIXES = frozenset(_IMAGES.split())
OTHER_SUFFIXES = frozenset(_OTHERS.split())
OTHER_NAMES = frozenset({"thumbs.db", "desktop.ini", "readme", "license", "makefile", "dockerfile", "sha256sums"})


@dataclass(frozen=True, kw_only=True)
class FoundImages:
    """The files below a folder, in an order that does not depend on the file system or locale.

    Args:
        paths: of images.
        unusable: devices, broken links, unreadable folders and the like, with the reason for each.
        others: files that are not images, although their suffix is not that of another format.
    """

    paths: tuple[Path, ...]
    unusable: tuple[tuple[Path, str], ...]
    others: tuple[Path, ...]


def find_images(folder: Path) -> FoundImages:
    """Find the images below `folder`, at any depth.

    A file with the suffix of an image format counts as an image, so that damaged ones are reported. Files with another known
    suffix (.txt, .json, …), hidden files and folders, and `__MACOSX` are ignored. All other files are recognized by content.
    Symbolic links are followed, also to outside of the folder; each folder is read once, and none above `folder`, so that
    loops end.
    """
    walk = _Walk()
    walk.read(folder)
    return FoundImages(
        paths=tuple(sorted(walk.paths, key=_order)),
        unusable=tuple(sorted(walk.unusable, key=lambda item: _order(item[0]))),
        others=tuple(sorted(walk.others, key=_order)),
    )


@dataclass(kw_only=True)
class _Walk:
    paths: list[Path] = field(default_factory=list)
    unusable: list[tuple[Path, str]] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    seen: set[tuple[int, int]] = field(default_factory=set)

    def read(self, folder: Path) -> None:
        own, linked = [folder], list[Path]()  # real folders are read before links
        while own or linked:
            linked.sort(key=_order)
            current = own.pop() if own else linked.pop(0)
            try:
                status = current.stat()
                if (status.st_dev, status.st_ino) in self.seen:
                    self.unusable.append((current, "it is a link to a folder that is included already"))
                    continue
                if current != folder and folder.resolve().is_relative_to(current.resolve()):
                    self.unusable.append((current, "it is a link to a parent folder"))
                    continue
                self.seen.add((status.st_dev, status.st_ino))
                with os.scandir(current) as entries:
                    listed = sorted(entries, key=lambda entry: os.fsencode(entry.name))
            except OSError as error:
                self.unusable.append((current, f"the folder cannot be read: {reason_of(error)}"))
                continue
            for entry in listed:
                path = current / entry.name
                if not _is_hidden(entry.name) and self._is_folder(entry, path):
                    (linked if entry.is_symlink() else own).append(path)

    def _is_folder(self, entry: os.DirEntry[str], path: Path) -> bool:
        """Return whether an entry is a folder; add a file to the list to which it belongs."""
        try:
            status = entry.stat()
        except OSError as error:
            if not _is_of_another_kind(path):
                reason = reason_of(error)
                self.unusable.append((path, f"it is a broken link: {reason}" if entry.is_symlink() else reason))
            return False
        if stat.S_ISDIR(status.st_mode):
            return True
        if _is_of_another_kind(path):
            return False
        if not stat.S_ISREG(status.st_mode):
            self.unusable.append((path, f"it is {kind_of(status.st_mode)}, not a regular file"))
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            self.paths.append(path)
        else:
            self._add_by_content(path)
        return False

    def _add_by_content(self, path: Path) -> None:
        try:
            with open_regular(path, follow_links=True) as file:
                start = file.read(decoding.START_BYTES)
        except OSError as error:
            self.unusable.append((path, reason_of(error)))
            return
        (self.paths if decoding.format_of(start) else self.others).append(path)


def sub_folders(folder: Path) -> list[Path]:
    """Return the visible folders in a folder, including links to folders, sorted by name.

    Raises:
        OSError: it cannot be read.
    """
    with os.scandir(folder) as entries:
        found = [folder / entry.name for entry in entries if not _is_hidden(entry.name) and entry.is_dir()]
    return sorted(found, key=_order)


def folder_problem(folder: Path) -> str | None:
    """Return a predicate that says why a path is not a readable folder; None if it is one."""
    try:
        with os.scandir(folder):
            return None
    except FileNotFoundError:
        return "does not exist"
    except NotADirectoryError:
        return "is not a folder"
    except OSError as error:
        return f"cannot be read: {reason_of(error)}"
    except ValueError:  # a null byte in the name
        return "does not exist"


def _order(path: Path) -> tuple[bytes, ...]:
    return tuple(os.fsencode(part) for part in path.parts)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_of_another_kind(path: Path) -> bool:
    return path.suffix.lower() in OTHER_SUFFIXES or path.name.lower() in OTHER_NAMES


class Skipped:
    """Reports skipped files: the first few as they occur, and the number of the others at the end."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, path: Path, reason: str) -> None:
        self._count += 1
        if self._count <= NAMED:
            console.warn(f"skipped {visible(path)}: {reason}")

    def add_found(self, found: Sequence[FoundImages], folder: Path) -> None:
        """Report the unusable files that `find_images` found below `folder`, and in one line those that are not images."""
        for path, reason in (item for one in found for item in one.unusable):
            self.add(path, reason)
        others = [path for one in found for path in one.others]
        if others:
            count = "1 file is not an image" if len(others) == 1 else f"{len(others)} files are not images"
            console.warn(f"{count}: {first_names(others, folder)}")

    def finish(self) -> None:
        if self._count > NAMED:
            console.warn(f"skipped {self._count - NAMED} more")


def first_names(paths: Sequence[Path], folder: Path) -> str:
    """Return the names of the first few files relative to `folder`, and the number of the others."""
    names = ", ".join(visible(name_of(path, folder)) for path in paths[:NAMED])
    return f"{names} and {len(paths) - NAMED} more" if len(paths) > NAMED else names
