"""SHA-256 digests, in hexadecimal and in the form of OCI."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["oci_digest", "sha256_of"]


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in lower-case hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def oci_digest(content: bytes) -> str:
    """Return `sha256:HEX`, the digest of a blob as OCI's image specification defines it (descriptor.md, "Digests")."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
