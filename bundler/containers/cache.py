"""Folders that are made once and kept between builds, named for everything that determines them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from bundler.containers.layers import writing
from bundler.resources import cache_directory

__all__ = ["cached_folder"]


def cached_folder(name: str, facts: Mapping[str, object], make: Callable[[Path], None]) -> Path:
    """Return the folder `name-<digest of facts>` of the cache; `make` fills it the first time.

    Raises:
        OutOfSpaceError: the disk is full.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    folder = cache_directory() / f"{name}-{digest[:16]}"
    if not folder.is_dir():
        with writing(folder) as partial:
            partial.mkdir()
            make(partial)
    return folder
