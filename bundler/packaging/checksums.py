"""SHA256SUMS of a bundle: written and read in the format of `sha256sum`, in one form only."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["CHECKSUMS", "CHECKSUMS_BYTES", "parse_checksums", "sha256_of", "write_checksums"]

CHECKSUMS = "SHA256SUMS"
CHECKSUMS_BYTES = 2**20  # at most; ours have 2 KB

_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*)")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(bundle: Path) -> None:
    """Cover every file but the list itself; `sha256sum -c SHA256SUMS` checks it on the device."""
    names = (path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    lines = [f"{sha256_of(bundle / name)}  {name}\n" for name in sorted(names) if name != CHECKSUMS]
    (bundle / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def parse_checksums(content: bytes) -> Mapping[str, str]:
    """Return the digest of each file that a list names.

    Raises:
        ValueError: a line is not `DIGEST  PATH` with a lower-case digest and a relative path, or a path occurs twice.
    """
    *lines, rest = content.decode("ascii", "backslashreplace").split("\n")  # one way only to end a line
    listed: dict[str, str] = {}
    for number, line in enumerate([*lines, rest] if rest else lines, start=1):
        found = _LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"line {number} is not a SHA-256 digest in lower case, two spaces and a path: {line[:100]!r}")
        digest, name = found.groups()
        if name in listed:
            raise ValueError(f"{name} occurs twice")
        if name == CHECKSUMS:
            raise ValueError("it lists itself")
        listed[name] = digest
    if rest:
        raise ValueError("its last line does not end")
    return listed
