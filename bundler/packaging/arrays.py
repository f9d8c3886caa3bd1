"""Read the arrays of an untrusted .npz archive: numbers only, with limits on their number and size."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundler.packaging.consistency import array_problem

__all__ = ["read_arrays"]

LARGEST = 2**28  # bytes of all arrays, uncompressed; the layer comparison of a detector needs a tenth of it
MOST = 10_000


def read_arrays(content: bytes) -> Mapping[str, NDArray[Any]]:
    """Return the arrays by name.

    Raises:
        ValueError: it is not a .npz archive, an array is not numeric or does not match its header, or there are more
            than 10,000 arrays or 256 MiB.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if len(members) > MOST or sum(member.file_size for member in members) > LARGEST:
                raise ValueError(f"it contains more than {MOST:,} arrays or {LARGEST:,} bytes")
            return {member.filename.removesuffix(".npy"): _array(archive, member) for member in members}
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"it is not a .npz archive: {error}") from error


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(member) as file:
        data = file.read(member.file_size)
    problem = array_problem(data[: 2**14], len(data))
    if problem:
        raise ValueError(f"{member.filename} {problem}")
    array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    return array
