"""SHA256SUMS of a bundle: written in the format of `sha256sum`, and checked file by file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from bundler.errors import BundleDamagedError

__all__ = ["CHECKSUMS", "check_checksums", "sha256_of", "write_checksums"]

CHECKSUMS = "SHA256SUMS"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(bundle: Path) -> None:
    """Cover every file but the list itself; `sha256sum -c SHA256SUMS` checks it on the device."""
    lines = [f"{sha256_of(bundle / name)}  {name}\n" for name in _files(bundle)]
    (bundle / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def check_checksums(bundle: Path) -> None:
    """Compare every file of the bundle with the list.

    Raises:
        BundleDamagedError: the list is missing or unreadable, or a file is changed, missing, or new; each is named.
    """
    path = bundle / CHECKSUMS
    try:
        lines = path.read_bytes().decode().split("\n")[:-1]  # one way only to end a line: any other is a changed byte
        listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise BundleDamagedError(f"{path} cannot be read: {error}", next_step=_NEXT_STEP) from error
    found = set(_files(bundle))
    problems = [f"{name} is missing" for name in sorted(listed.keys() - found)]
    problems += [f"{name} is not in {CHECKSUMS}" for name in sorted(found - listed.keys())]
    problems += [f"{name} has changed" for name in sorted(found & listed.keys()) if sha256_of(bundle / name) != listed[name]]
    if problems:
        raise BundleDamagedError(f"{bundle} is not the bundle that was proved: {', '.join(problems)}", next_step=_NEXT_STEP)


_NEXT_STEP = "Restore the bundle from its .tar.gz, or build it again."


def _files(bundle: Path) -> list[str]:
    names = (path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    return sorted(name for name in names if name != CHECKSUMS)
