"""Where `targets/`, `templates/` and `docker/` are: in an installed wheel, or in the repository of an editable install."""

from __future__ import annotations

from pathlib import Path

import platformdirs

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
    """Return the folder for downloads and base images (`$XDG_CACHE_HOME/edge-bundler`), made if needed."""
    return platformdirs.user_cache_path("edge-bundler", ensure_exists=True)
