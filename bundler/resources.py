"""Where `targets/`, `templates/` and `docker/` are: in an installed wheel, or in the repository of an editable install."""

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
    msg = f"{Path(*parts)} is missing from this installation of edge-bundler; install it again"
    raise FileNotFoundError(msg)


def cache_directory() -> Path:
    """Return the folder for downloads and base images (`$XDG_CACHE_HOME/edge-bundler`), made if needed.

    Raises:
        OutputError: it cannot be made, or there is no home directory to make it in.
    """
    try:
        path = platformdirs.user_cache_path("edge-bundler")
    except RuntimeError:  # older platformdirs return "~/.cache/edge-bundler" instead
        path = Path("~")
    if not path.is_absolute():
        raise OutputError("this user has no home directory to keep the cache in", next_step="Set HOME, or XDG_CACHE_HOME=DIR.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the cache {path} cannot be made: {error.strerror} ({os.fsdecode(error.filename)})",
            next_step="Make room for it, or put it elsewhere: XDG_CACHE_HOME=DIR.",
        ) from error
    return path
