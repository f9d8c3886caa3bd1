"""SHA256SUMS of a bundle: the list of `sha256sum`, in a strict form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from bundler.files.sha256 import sha256_of

__all__ = ["CHECKSUMS", "CHECKSUMS_BYTES", "parse_checksums", "write_checksums"]

CHECKSUMS = "SHA256SUMS"
CHECKSUMS_BYTES = 2**20  # limit; a list that this package writes has about 2 KB

_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*)")


def write_checksums(bundle: Path) -> None:
    """Write the digests of all files but the list itself; `sha256sum -c SHA256SUMS` verifies them on the device."""
    names = (path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    lines = [f"{sha256_of(bundle / name)}  {name}\n" for name in sorted(names) if name != CHECKSUMS]
    (bundle / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def parse_checksums(content: bytes) -> Mapping[str, str]:
    """Return the digest of each path in a list.

    Raises:
        ValueError: a line is not `DIGEST  PATH` with a lower-case digest and a relative path, a path occurs twice, or the list
            contains itself.
    """
    *lines, rest = content.decode("ascii", "backslashreplace").split("\n")  # LF is the only line ending
    listed: dict[str, str] = {}
    for number, line in enumerate([*lines, rest] if rest else lines, start=1):
        found = _LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"line {number} is not a SHA-256 digest in lower case, two spaces and a path: {line[:100]!r}")
        digest, name = found.groups()
        if name in listed:
            raise ValueError(f"{name} occurs twice")
        if name == CHECKSUMS:
            raise ValueError("it contains itself")
        listed[name] = digest
    if rest:
        raise ValueError("its last line is incomplete")
    return listed
