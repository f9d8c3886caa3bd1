"""The base image of `--base-image`: its layers, environment and Python, exported from the engine."""

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
from bundler.engines.container_engine import Engine, call_engine, engine_errors
from bundler.errors import ImageError
from bundler.files.atomic_write import atomic_write
from bundler.images.layers import Layer, read_layer
from bundler.targets import TargetProfile

__all__ = ["BaseImage", "take_base_image"]

_PULL_SECONDS = 7200.0  # gigabytes over a slow connection; pings detect earlier that the engine has stopped

_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, kw_only=True)
class BaseImage:
    """The layers of a base image from the lowest up, its environment, and the absolute path of its Python."""

    layers: tuple[Layer, ...]
    environment: Mapping[str, str]
    python: str


def take_base_image(engine: Engine, reference: str, profile: TargetProfile, workspace: Path) -> BaseImage:
    """Export an image from the engine, which pulls it for the target's platform first if it does not have it.

    Raises:
        ImageError: it cannot be pulled, is for another architecture, or does not have the target's Python on its PATH.
        EngineError: the engine failed.
        OutOfSpaceError: the disk is full.
    """
    _require(engine, reference, profile)
    console.step(f"Exporting the base image {reference} from {engine.name}")
    exported = workspace / "base-image.tar"
    with engine_errors(f"exporting {reference}"), atomic_write(exported) as partial_path:
        call_engine(engine, partial(_export, engine, reference, partial_path), seconds=_PULL_SECONDS)
    with tarfile.open(exported) as archive:
        config, names = _configuration(archive, reference, profile.architecture)
        layers = tuple(_take_layer(archive, name, workspace / f"base-{index}.tar") for index, name in enumerate(names))
    exported.unlink()
    if [layer.diff_id for layer in layers] != config["rootfs"]["diff_ids"]:
        msg = f"the layers of {reference} that the engine exported do not match the diff_ids of its config"
        raise ImageError(msg, next_step=f"Pull it again: `docker pull --platform {profile.platform} {reference}`.")
    environment = dict(entry.split("=", 1) for entry in config["config"].get("Env") or ())
    environment.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    python = find_python(layers, environment["PATH"], reference, profile.runtime.python)
    return BaseImage(layers=layers, environment=environment, python=python)


def find_python(layers: Sequence[Layer], path: str, reference: str, version: str) -> str:
    """Return the absolute path of `python3` on the PATH of an image; QEMU does not search the PATH.

    Raises:
        ImageError: it has none, or one of another version than `version`, according to the file name.
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
            msg = f"{reference} has Python {found[1]}; the target's runtime requires {version}"
            raise ImageError(msg, next_step=f"Use an image with Python {version}, such as `python:{version}-slim-bookworm`.")
        return str(python)
    msg = f"{reference} has no python3 on its PATH ({path})"
    raise ImageError(msg, next_step=f"Use an image with Python {version}, such as `python:{version}-slim-bookworm`.")


def _export(engine: Engine, reference: str, destination: Path) -> None:
    with destination.open("wb") as file:
        for chunk in engine.client.api.get_image(reference):
            file.write(chunk)


def _require(engine: Engine, reference: str, profile: TargetProfile) -> None:
    with engine_errors(f"looking for {reference}"):
        try:
            held = call_engine(engine, lambda: engine.client.images.get(reference)).attrs
        except ImageNotFound:
            held = _pull(engine, reference, profile.platform)
    if held["Architecture"] != profile.architecture.value:
        raise _wrong_architecture(reference, held["Architecture"], profile.architecture)


def _pull(engine: Engine, reference: str, platform: str) -> dict[str, Any]:
    console.step(f"Pulling {reference} for {platform}")
    try:
        pull = partial(engine.client.images.pull, reference, platform=platform)
        return dict(call_engine(engine, pull, seconds=_PULL_SECONDS).attrs)
    except APIError as error:
        msg = f"{engine.name} cannot pull {reference} for {platform}: {error.explanation}"
        raise ImageError(
            msg,
            next_step="Check the reference and `docker login`, or omit `--base-image` to use Debian packages.",
        ) from error


def _configuration(archive: tarfile.TarFile, reference: str, architecture: Architecture) -> tuple[dict[str, Any], list[str]]:
    """Return the config for `architecture` of an exported image, and the names of its layers in the archive."""
    found = []
    for image in _read_json(archive, "manifest.json"):
        config = _read_json(archive, image["Config"])
        if config["architecture"] == architecture.value:
            return config, image["Layers"]
        found.append(config["architecture"])
    raise _wrong_architecture(reference, ", ".join(found), architecture)


def _wrong_architecture(reference: str, found: str, wanted: Architecture) -> ImageError:
    return ImageError(
        f"{reference} is an image for linux/{found}; this target requires {wanted.platform}",
        next_step=f"Run `docker pull --platform {wanted.platform} {reference}`, or use an image that exists for this platform.",
    )


def _take_layer(archive: tarfile.TarFile, name: str, destination: Path) -> Layer:
    """Copy one layer of an exported image and decompress it: some engines store layers compressed."""
    content = archive.extractfile(name)
    if content is None:
        msg = f"the image that the engine exported lacks the layer {name}"
        raise ImageError(msg, next_step="Pull the image again.")
    with content, atomic_write(destination) as partial_path, partial_path.open("wb") as file:
        compressed = content.read(2) == _GZIP
        content.seek(0)
        source = gzip.GzipFile(fileobj=content) if compressed else content
        shutil.copyfileobj(source, file)
    return read_layer(destination)


def _entries(layers: Sequence[Layer]) -> dict[str, str]:
    """Map every path of an image to the target of its symbolic link, or to an empty string."""
    entries: dict[str, str] = {}
    for layer in layers:
        with tarfile.open(layer.path) as tar:
            for entry in tar:
                path = PurePosixPath(entry.name)
                if path.name.startswith(".wh."):  # a whiteout: the file of a lower layer is deleted
                    entries.pop(str(path.with_name(path.name.removeprefix(".wh."))), None)
                else:
                    entries[str(path)] = entry.linkname if entry.issym() else ""
    return entries


def _read_json(archive: tarfile.TarFile, name: str) -> Any:
    content = archive.extractfile(name)
    assert content is not None  # noqa: S101  it is a regular file
    with content:
        return json.load(content)
