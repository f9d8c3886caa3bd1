"""A base image of the user's own (`--base-image`): taken out of the engine, layer by layer, with its PATH and its Python."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from docker.errors import APIError, ImageNotFound

from bundler import console
from bundler.architecture import Architecture
from bundler.engines.container_engine import Engine, asked, engine_errors
from bundler.errors import ImageError
from bundler.images.layers import Layer, read_layer, writing
from bundler.targets import TargetProfile

__all__ = ["BaseImage", "take_base_image"]

_PULL_SECONDS = 7200.0  # of gigabytes over a slow line; the pings say earlier that the engine has stopped

_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, kw_only=True)
class BaseImage:
    """What an image begins with: layers from the lowest up, environment, and the absolute path of its Python."""

    layers: tuple[Layer, ...]
    environment: Mapping[str, str]
    python: str


def take_base_image(engine: Engine, reference: str, profile: TargetProfile, workspace: Path) -> BaseImage:
    """Take an image from the engine, which pulls it for the target's platform if it does not hold it.

    Raises:
        ImageError: it cannot be pulled, is for another architecture, or has not the target's Python on its PATH.
        EngineError: the engine failed half-way.
        OutOfSpaceError: the disk is full.
    """
    _require(engine, reference, profile)
    console.step(f"Taking {reference} from {engine.name} as the base image")
    exported = workspace / "base-image.tar"
    with engine_errors(f"exporting {reference}"), writing(exported) as beside:
        asked(engine, partial(_export, engine, reference, beside), seconds=_PULL_SECONDS)
    with tarfile.open(exported) as archive:
        config, names = _configuration(archive, reference, profile.architecture)
        layers = tuple(_take_layer(archive, name, workspace / f"base-{index}.tar") for index, name in enumerate(names))
    exported.unlink()
    if [layer.diff_id for layer in layers] != config["rootfs"]["diff_ids"]:
        msg = f"the engine gave out other layers of {reference} than its configuration names"
        raise ImageError(msg, next_step=f"Pull it again: `docker pull --platform {profile.platform} {reference}`.")
    environment = dict(entry.split("=", 1) for entry in config["config"].get("Env") or ())
    environment.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    python = find_python(layers, environment["PATH"], reference, profile.runtime.python)
    return BaseImage(layers=layers, environment=environment, python=python)


def find_python(layers: Sequence[Layer], path: str, reference: str, version: str) -> str:
    """Return where `python3` is on the PATH of an image, absolute: an emulator is given programs by their path.

    Raises:
        ImageError: it has none, or one whose name says that it is not `version`.
    """
    entries = _entries(layers)
    for folder in path.split(":"):
        python = PurePosixPath(folder, "python3")
        if str(python).lstrip("/") not in entries:
            continue
        program = python
        while target := entries.get(str(program).lstrip("/")):
            program = program.parent / target
        found = re.fullmatch(r"python(3\.\d+)", program.name)
        if found and found[1] != version:
            msg = f"{reference} has Python {found[1]}; the target's runtime is for {version}"
            raise ImageError(msg, next_step=f"Use one with Python {version}, such as `python:{version}-slim-bookworm`.")
        return str(python)
    msg = f"{reference} has no python3 on its PATH ({path})"
    raise ImageError(msg, next_step=f"Use one with Python {version}, such as `python:{version}-slim-bookworm`.")


def _export(engine: Engine, reference: str, destination: Path) -> None:
    with destination.open("wb") as file:
        for chunk in engine.client.api.get_image(reference):
            file.write(chunk)


def _require(engine: Engine, reference: str, profile: TargetProfile) -> None:
    with engine_errors(f"looking for {reference}"):
        try:
            held = asked(engine, lambda: engine.client.images.get(reference)).attrs
        except ImageNotFound:
            held = _pull(engine, reference, profile.platform)
    if held["Architecture"] != profile.architecture.value:
        raise _wrong_architecture(reference, held["Architecture"], profile.architecture)


def _pull(engine: Engine, reference: str, platform: str) -> dict[str, Any]:
    console.step(f"Pulling {reference} for {platform}")
    try:
        pull = partial(engine.client.images.pull, reference, platform=platform)
        return dict(asked(engine, pull, seconds=_PULL_SECONDS).attrs)
    except APIError as error:
        msg = f"{engine.name} cannot pull {reference} for {platform}: {error.explanation}"
        raise ImageError(
            msg, next_step="Check the name and `docker login`, or leave `--base-image` out to build one from Debian."
        ) from error


def _configuration(archive: tarfile.TarFile, reference: str, architecture: Architecture) -> tuple[dict[str, Any], list[str]]:
    """Return the configuration for `architecture` of an exported image, and its layers' names in the archive."""
    found = []
    for image in _read_json(archive, "manifest.json"):
        config = _read_json(archive, image["Config"])
        if config["architecture"] == architecture.value:
            return config, image["Layers"]
        found.append(config["architecture"])
    raise _wrong_architecture(reference, ", ".join(found), architecture)


def _wrong_architecture(reference: str, found: str, wanted: Architecture) -> ImageError:
    return ImageError(
        f"{reference} is an image for linux/{found}; this target needs {wanted.platform}",
        next_step=f"`docker pull --platform {wanted.platform} {reference}` replaces it by the right one, where that exists.",
    )


def _take_layer(archive: tarfile.TarFile, name: str, destination: Path) -> Layer:
    """Copy one layer out of an exported image, uncompressed: newer engines keep them compressed."""
    content = archive.extractfile(name)
    if content is None:
        msg = f"the engine exported an image without its layer {name}"
        raise ImageError(msg, next_step="Pull the image again.")
    with content, writing(destination) as beside, beside.open("wb") as file:
        compressed = content.read(2) == _GZIP
        content.seek(0)
        source = gzip.GzipFile(fileobj=content) if compressed else content
        shutil.copyfileobj(source, file)
    return read_layer(destination)


def _entries(layers: Sequence[Layer]) -> dict[str, str]:
    """Return every path of an image with what it links to, or an empty string."""
    entries: dict[str, str] = {}
    for layer in layers:
        with tarfile.open(layer.path) as tar:
            for entry in tar:
                path = PurePosixPath(entry.name)
                if path.name.startswith(".wh."):  # how a layer says that a file of a lower one is gone
                    entries.pop(str(path.with_name(path.name.removeprefix(".wh."))), None)
                else:
                    entries[str(path)] = entry.linkname if entry.issym() else ""
    return entries


def _read_json(archive: tarfile.TarFile, name: str) -> Any:
    content = archive.extractfile(name)
    assert content is not None  # noqa: S101  a regular file of the format
    with content:
        return json.load(content)
