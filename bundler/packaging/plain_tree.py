"""The file tree of a bundle: regular files only, with names from a fixed alphabet, and limits on their number and size."""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from bundler.device.runner_json import PROGRAM, RUNNER_JSON
from bundler.errors import BundleDamagedError
from bundler.manifest import MANIFEST_BYTES
from bundler.packaging.checksums import CHECKSUMS, CHECKSUMS_BYTES
from bundler.packaging.runner_document import RUNNER_BYTES
from bundler.plain_files import kind_of, open_regular

__all__ = [
    "LARGEST_BUNDLE",
    "LARGEST_FILE",
    "MOST_ENTRIES",
    "NAME",
    "Folder",
    "damaged_bundle",
    "is_bundle_file",
    "open_bundle",
    "open_file",
    "plain_tree",
    "size_limit",
]

# What a bundle may contain; a file of any other name is refused.
FILES = frozenset(
    {CHECKSUMS, "Dockerfile", "README.md", "compose.yaml", "manifest.json", "report.html", "requirements.txt"}
    | {RUNNER_JSON, PROGRAM}
)
FOLDERS: Mapping[str, tuple[str, ...]] = {"golden": (".npy", ".onnx"), "ledger": (".npz",), "models": (".onnx",)}

LARGEST_FILE = 2**31  # bytes; the limit of protobuf, and so of ONNX files
LARGEST_BUNDLE = 2**33
LARGEST_DOCUMENT = 64 * 2**20  # bytes; of files in the top directory other than these
DOCUMENTS: Mapping[str, int] = {CHECKSUMS: CHECKSUMS_BYTES, "manifest.json": MANIFEST_BYTES, RUNNER_JSON: RUNNER_BYTES}
MOST_ENTRIES = 200

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Folder:
    """A file descriptor of a folder, closed at the end of a `with` block."""

    def __init__(self, name: str | Path, *, inside: int | None = None, follow_links: bool = False) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
        self.descriptor = os.open(name, flags, dir_fd=inside)

    def __enter__(self) -> int:
        return self.descriptor

    def __exit__(self, *_exception: object) -> None:
        os.close(self.descriptor)


def open_bundle(directory: Path) -> Folder:
    """Open the directory of a bundle, which may be given as a symbolic link.

    Raises:
        BundleDamagedError: it does not exist, is not a directory, or cannot be opened.
    """
    try:
        return Folder(directory, follow_links=True)
    except NotADirectoryError as error:
        next_step = "Specify the folder of a bundle."
        if directory.name.endswith((".tar.gz", ".tgz", ".tar")):
            next_step = f"Unpack it (`tar -xf {directory}`) and specify the folder; `bundler inspect` also reads a .tar.gz."
        raise BundleDamagedError(f"{directory} is not a folder; a bundle is a folder", next_step=next_step) from error
    except OSError as error:
        raise BundleDamagedError(
            f"{directory} cannot be opened: {error.strerror}",
            next_step="Specify the folder of a bundle; `bundler bundle MODEL --target TARGET` builds one.",
        ) from error


def plain_tree(directory: Path, root: int) -> Mapping[str, int]:
    """Return the size in bytes of every file, by its path.

    Raises:
        BundleDamagedError: there are links, special files, unknown folders, names outside the alphabet, or too many or too
            large files; the message lists them.
    """
    sizes: dict[str, int] = {}
    problems: list[str] = []
    for count, (folder, name, status) in enumerate(_entries(root, problems)):
        path = f"{folder}/{name}" if folder else name
        problem = _problem(folder, name, status)
        if problem:
            problems.append(f"{path} {problem}")
        elif stat.S_ISREG(status.st_mode):
            sizes[path] = status.st_size
        if count >= MOST_ENTRIES:
            problems.append(f"it contains more than {MOST_ENTRIES} files and folders")
            break
    ordered = sorted(sizes, key=str.lower)
    problems += [
        f"{one} and {other} differ only in case" for one, other in itertools.pairwise(ordered) if one.lower() == other.lower()
    ]
    if sum(sizes.values()) > LARGEST_BUNDLE:
        problems.append(f"it is larger than {LARGEST_BUNDLE:,} bytes")
    if problems:
        raise damaged_bundle(directory, problems)
    return sizes


def _entries(root: int, problems: list[str]) -> Iterator[tuple[str, str, os.stat_result]]:
    """Yield the entries of the bundle's directory, and of those subdirectories that a bundle has."""
    for name, status in _scanned(root):
        yield "", name, status
        if not stat.S_ISDIR(status.st_mode) or name not in FOLDERS:
            continue
        try:
            inner = Folder(name, inside=root)
        except OSError as error:
            problems.append(f"{name} cannot be opened: {error.strerror}")
            continue
        with inner as descriptor:
            found = list(_scanned(descriptor))
        if not found:
            problems.append(f"{name} is an empty folder")
        for inner_name, inner_status in found:
            yield name, inner_name, inner_status


def _scanned(folder: int) -> Iterator[tuple[str, os.stat_result]]:
    """Yield names and their status without following links, sorted; of too many entries only a part."""
    with os.scandir(folder) as scan:
        names = sorted(entry.name for _, entry in zip(range(MOST_ENTRIES + 1), scan, strict=False))
    for name in names:
        try:
            yield name, os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:  # removed meanwhile
            continue


def _problem(folder: str, name: str, status: os.stat_result) -> str:
    """Return what is wrong with an entry; empty if it is valid."""
    if stat.S_ISDIR(status.st_mode):
        return "" if not folder and name in FOLDERS else "is a folder that does not belong to a bundle"
    if not stat.S_ISREG(status.st_mode):
        return f"is {kind_of(status.st_mode)}, not a regular file"
    if status.st_nlink > 1:
        return f"is a hard link: the file has {status.st_nlink} names"
    if not NAME.fullmatch(name):
        return "has a name with characters other than letters, digits, `.`, `_` and `-`, or with more than 128 characters"
    limit = size_limit(f"{folder}/{name}" if folder else name)
    return f"is larger than {limit:,} bytes" if status.st_size > limit else ""


def size_limit(path: str) -> int:
    """Return the size limit of a file in bytes."""
    return LARGEST_FILE if "/" in path else DOCUMENTS.get(path, LARGEST_DOCUMENT)


def is_bundle_file(path: str) -> bool:
    """Return whether a bundle can contain a file with that path."""
    folder, _, name = path.rpartition("/")
    return name.endswith(FOLDERS.get(folder, ())) if folder else name in FILES or name.endswith(".service")


def open_file(root: int, path: str) -> BinaryIO:
    """Open a file of the bundle for reading; links are not followed.

    Raises:
        OSError: it does not exist, cannot be read, or is not a regular file.
    """
    folder, _, name = path.rpartition("/")
    if not folder:
        return open_regular(name, folder=root)
    with Folder(folder, inside=root) as descriptor:
        return open_regular(name, folder=descriptor)


def damaged_bundle(directory: Path, problems: list[str]) -> BundleDamagedError:
    """Return the error that lists the first 20 problems."""
    more = f", and {len(problems) - 20} more" if len(problems) > 20 else ""
    return BundleDamagedError(
        f"{directory} is not the bundle that was built: {', '.join(problems[:20])}{more}",
        next_step="Restore the bundle from its .tar.gz, or build it again.",
    )
