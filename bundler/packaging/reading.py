"""CheckedBundle: a bundle that somebody else may have made, checked before anything of it is used, and copied as checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bundler.device.runner_json import PROGRAM, RUNNER_JSON, RunnerDocument
from bundler.errors import BundleDamagedError
from bundler.manifest import Manifest, parse_manifest
from bundler.packaging.checksums import CHECKSUMS, parse_checksums
from bundler.packaging.consistency import array_problems, disagreements
from bundler.packaging.plain_tree import (
    LARGEST_FILE,
    damaged_bundle,
    is_bundle_file,
    open_bundle,
    open_file,
    plain_tree,
    size_limit,
)
from bundler.packaging.runner_document import read_runner_document

__all__ = ["CheckedBundle", "check_bundle"]

_CHUNK = 2**20
_NEXT_STEP = "Restore the bundle from its .tar.gz, or build it again."


@dataclass(frozen=True, kw_only=True)
class CheckedBundle:
    """A bundle whose files are plain and as its checksums say, and whose documents are valid and agree with each other.

    `digests` has the SHA-256 of every file but SHA256SUMS, by its path in the bundle.
    """

    directory: Path
    manifest: Manifest
    runner: RunnerDocument
    digests: Mapping[str, str]

    @property
    def image_files(self) -> tuple[str, ...]:
        """The names of what goes into the device image, sorted."""
        return tuple(sorted([*self.runner.files, RUNNER_JSON]))

    def copy_to(self, folder: Path) -> None:
        """Copy what was checked, and nothing else, into a new folder; files get the mode that a build gives them.

        Raises:
            BundleDamagedError: a file is no longer the one that was checked.
            OSError: the copy cannot be written.
        """
        folder.mkdir()
        for name in sorted({Path(path).parent.name for path in self.digests} - {""}):
            (folder / name).mkdir()
        with open_bundle(self.directory) as root:
            for path, digest in self.digests.items():
                if _copy(root, path, folder / path) != digest:
                    raise damaged_bundle(self.directory, [f"{path} has changed while it was read"])
        lines = [f"{digest}  {path}\n" for path, digest in sorted(self.digests.items())]
        (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def check_bundle(directory: Path) -> CheckedBundle:
    """Check every file of a bundle, without writing anything, waiting, or reading more than a bundle can hold.

    A bundle is a tree of regular files: SHA256SUMS, manifest.json, runner.json and the others that `bundler bundle` writes.
    Every other kind of file (links, hard links too, FIFOs, devices), an unknown name, and a wrong checksum is named.

    Args:
        directory: the bundle's folder; it may itself be reached through a symbolic link.

    Raises:
        BundleDamagedError: there is no such folder; or with everything that is wrong with the files, or the first thing that
            is with a document.
    """
    with open_bundle(directory) as root:
        sizes = plain_tree(directory, root)
        _require_layout(directory, sizes)
        listed = _listed(directory, root)
        documents = {"manifest.json": _document(directory, root, "manifest.json", "a manifest")}
        manifest = parse_manifest(documents["manifest.json"], directory / "manifest.json")
        documents[RUNNER_JSON] = _document(directory, root, RUNNER_JSON, "usable")
        problems = [f"{name} is missing" for name in sorted(listed.keys() - sizes)]
        problems += [f"{name} is not in {CHECKSUMS}" for name in sorted(sizes.keys() - listed.keys() - {CHECKSUMS})]
        for name in sorted(sizes.keys() & listed.keys()):
            if not is_bundle_file(name):
                problems.append(f"{name} does not belong to a bundle")
            elif _digest(root, name, documents) != listed[name]:
                problems.append(f"{name} has changed")
        if problems:
            raise damaged_bundle(directory, problems)
        runner = read_runner_document(documents[RUNNER_JSON], directory / RUNNER_JSON)
        problems = [*disagreements(manifest, runner, listed, sizes), *array_problems(root, sizes)]
        if problems:
            raise damaged_bundle(directory, problems)
    return CheckedBundle(directory=directory, manifest=manifest, runner=runner, digests=listed)


def _require_layout(directory: Path, sizes: Mapping[str, int]) -> None:
    """Refuse a bundle of edge-bundler 0.1, whose device program was the file `runner.py`."""
    if "runner.py" in sizes and PROGRAM not in sizes:
        raise BundleDamagedError(
            f"{directory} was built by an earlier version: its device program is runner.py, not {PROGRAM}",
            next_step="Build it again with this version (`bundler bundle`), or verify it with the version that built it.",
        )


def _listed(directory: Path, root: int) -> Mapping[str, str]:
    try:
        with open_file(root, CHECKSUMS) as file:
            return parse_checksums(file.read(size_limit(CHECKSUMS)))
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:
        reason = str(error)
    raise BundleDamagedError(f"{directory / CHECKSUMS} cannot be read: {reason}", next_step=_NEXT_STEP)


def _document(directory: Path, root: int, name: str, kind: str) -> bytes:
    try:
        with open_file(root, name) as file:
            return file.read(size_limit(name))
    except OSError as error:
        raise BundleDamagedError(f"{directory / name} is not {kind}: {error.strerror}", next_step=_NEXT_STEP) from error


def _digest(root: int, path: str, documents: Mapping[str, bytes]) -> str:
    """Return the digest of a file, or of the document that was read from it; empty if it cannot be read."""
    if path in documents:
        return hashlib.sha256(documents[path]).hexdigest()
    try:
        with open_file(root, path) as file:
            return _digest_of(file, None)
    except OSError:
        return ""


def _copy(root: int, path: str, destination: Path) -> str:
    """Copy a file of the bundle and return the digest of what was written; empty if it cannot be read any more."""
    try:
        source = open_file(root, path)
    except OSError:
        return ""
    with source, destination.open("xb") as copy:
        digest = _digest_of(source, copy)
    destination.chmod(0o644)
    return digest


def _digest_of(source: BinaryIO, copy: BinaryIO | None) -> str:
    """Return the digest of a file while it is copied; of a file that grows meanwhile, no more than the limit is read."""
    digest, left = hashlib.sha256(), LARGEST_FILE + 1
    while left > 0 and (chunk := source.read(min(_CHUNK, left))):
        digest.update(chunk)
        left -= len(chunk)
        if copy is not None:
            copy.write(chunk)
    return digest.hexdigest()
