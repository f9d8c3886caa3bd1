"""Paths of the data files in `targets/`, `templates/` and `docker/`, and of the cache.

The data files are in the installed wheel, or in the repository of an editable install (docs/decisions/top-level-data-files.md).
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from bundler.errors import OutputError

__all__ = ["cache_directory", "resource"]

_PACKAGE = Path(__file__).parent


def resource(*parts: str) -> Path:
    """Return the path of a data file or folder, such as `resource("targets", "x86-fbgemm.toml")`.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    for root in (_PACKAGE / "_data", _PACKAGE.parent):
        path = root.joinpath(*parts)
        if path.exists():
            return path
    msg = f"{Path(*parts)} is missing in this installation of edge-bundler; install it again"
    raise FileNotFoundError(msg)


def cache_directory() -> Path:
    """Return the directory for downloads and base images (`$XDG_CACHE_HOME/edge-bundler`); it is created if it does not exist.

    Raises:
        OutputError: it cannot be created, or the user has no home directory.
    """
    try:
        path = platformdirs.user_cache_path("edge-bundler")
    except RuntimeError:  # older platformdirs return "~/.cache/edge-bundler" instead
        path = Path("~")
    if not path.is_absolute():
        raise OutputError("this user has no home directory for the cache", next_step="Set HOME, or XDG_CACHE_HOME=DIR.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the cache {path} cannot be created: {error.strerror} ({os.fsdecode(error.filename)})",
            next_step="Make its parent writable, or use another directory: XDG_CACHE_HOME=DIR.",
        ) from error
    return path
