"""The device image: base, runtime and application layers put together by hand, so that the same inputs give the same bytes.

An engine's `build` stamps the time into an image. Here the archive that `docker load` reads is written directly: it is a
docker-archive and an OCI layout at once, as `docker save` writes them since Docker 25, and Podman and skopeo read it too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from docker.errors import APIError, ImageNotFound

from bundler import console
from bundler.architecture import Architecture
from bundler.device.runner_json import PROGRAM
from bundler.engines.container_engine import ENGINE_FAILURES, Engine, asked, engine_errors
from bundler.errors import EngineUnavailableError, ImageError
from bundler.images.base_image import base_layer
from bundler.images.custom_base import BaseImage, take_base_image
from bundler.images.layers import Layer, Member, file_members, write_layer, write_members, writing
from bundler.images.runtime_layer import RUNTIME, Wheel, runtime_layer
from bundler.targets import TargetProfile

__all__ = [
    "BUNDLE",
    "BUNDLE_LABEL",
    "DeviceImage",
    "ImageArchive",
    "assemble_image",
    "loaded_image",
    "tag_image",
    "untag_image",
]

BUNDLE = "opt/bundle"
BUNDLE_LABEL = "edge-bundler.bundle"  # SHA-256 of the runner.json in the image

_LOAD_SECONDS = 300.0  # and what the slowest disk takes: an SD card
_SLOWEST_LOAD = 1e6  # bytes a second

_CREATED = "1970-01-01T00:00:00Z"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = {
    "PYTHONPATH": f"/{RUNTIME}",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime 1.32 for Linux reports to its makers otherwise
}


@dataclass(frozen=True, kw_only=True)
class ImageArchive:
    """An image as a file that `docker load` reads.

    `digest` is `sha256:…` of its configuration, `size_bytes` the sum of its uncompressed layers, `diff_ids` are their digests.
    """

    path: Path
    reference: str
    digest: str
    size_bytes: int
    base: str
    wheels: tuple[Wheel, ...]
    architecture: Architecture
    diff_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DeviceImage:
    """An image in an engine.

    `id` is the engine's, and what containers are started from: a name may be moved to another image at any time. `digest` is
    `sha256:…` of the image's configuration; `base` is `debian:SUITE`, or the reference of the user's base image.
    """

    id: str
    digest: str
    architecture: Architecture
    size_bytes: int
    base: str
    wheels: tuple[Wheel, ...]


def assemble_image(
    profile: TargetProfile,
    *,
    bundle: Path,
    files: Sequence[str],
    reference: str,
    labels: Mapping[str, str],
    base_image: str | None,
    engine: Engine | None,
    workspace: Path,
) -> ImageArchive:
    """Write `workspace/image.tar`: the given files of `bundle` at /opt/bundle, on the target's runtime and base.

    Without `base_image` no engine is needed.

    Raises:
        ImageError: the base image or the wheels cannot be had, or the base image does not fit the target.
        EngineError: the engine failed while giving out `base_image`.
        OutOfSpaceError: the disk is full.
    """
    base = _own_base(profile) if base_image is None else _given_base(profile, base_image, engine, workspace)
    runtime = runtime_layer(profile)
    application = write_layer(workspace / "application.tar", file_members(bundle, files, below=BUNDLE))
    layers = (*base.layers, runtime.layer, application)
    config = _config(profile, base, layers, labels)
    path = workspace / "image.tar"
    manifest = _manifest(config, layers)
    with writing(path) as beside, beside.open("wb") as file:
        write_members(file, _archive_members(config, manifest, layers, reference))
    return ImageArchive(
        path=path,
        reference=reference,
        digest=_digest(config),
        base=base_image or f"debian:{profile.image.suite}",
        size_bytes=sum(layer.size_bytes for layer in layers),
        wheels=runtime.wheels,
        architecture=profile.architecture,
        diff_ids=tuple(layer.diff_id for layer in layers),
    )


@contextmanager
def loaded_image(engine: Engine, archive: ImageArchive) -> Iterator[DeviceImage]:
    """Load an archive into the engine and check that it holds exactly that image; the archive's name is removed at the end.

    The image itself stays if it was given another name meanwhile.

    Raises:
        EngineError: the engine refused, or failed half-way.
        ImageError: the engine holds other layers or another architecture than the archive.
    """
    console.step(f"Loading the device image ({archive.size_bytes / 1e6:.0f} MB) into {engine.name}")
    try:
        with engine_errors("loading the device image"), archive.path.open("rb") as file:
            asked(engine, lambda: engine.client.images.load(file), seconds=_LOAD_SECONDS + archive.size_bytes / _SLOWEST_LOAD)
        yield _checked(engine, archive)
    finally:
        untag_image(engine, archive.reference)


def _checked(engine: Engine, archive: ImageArchive) -> DeviceImage:
    with engine_errors("inspecting the device image"):
        held = asked(engine, lambda: engine.client.images.get(archive.reference))
    # An image's id differs between the engines' stores (configuration or manifest); the layers' digests do not.
    if tuple(held.attrs["RootFS"]["Layers"]) != archive.diff_ids:
        msg = f"the engine holds other layers under {archive.reference} than the ones that were loaded"
        raise ImageError(msg, next_step="Run the same command again; `docker info` shows the engine's storage driver.")
    if held.attrs["Architecture"] != archive.architecture.value:
        msg = f"the engine holds {archive.reference} for {held.attrs['Architecture']}, not for {archive.architecture.platform}"
        raise ImageError(msg, next_step="Run the same command again; `docker info` shows the engine's storage driver.")
    return DeviceImage(
        id=str(held.id),
        digest=archive.digest,
        architecture=archive.architecture,
        size_bytes=archive.size_bytes,
        base=archive.base,
        wheels=archive.wheels,
    )


def tag_image(engine: Engine, image: DeviceImage, reference: str) -> None:
    """Give an image a name, `REPOSITORY:TAG`; if another image had that name, it loses it.

    Raises:
        EngineError: the engine failed.
    """
    repository, _, tag = reference.rpartition(":")
    with engine_errors(f"tagging the device image as {reference}"):
        asked(engine, lambda: engine.client.api.tag(image.id, repository, tag))


def untag_image(engine: Engine, reference: str) -> None:
    """Remove a name, and the image if that was its last one and no container uses it; no failure if there is none."""
    try:
        asked(engine, lambda: engine.client.images.remove(reference))
    except ImageNotFound:
        return
    except ENGINE_FAILURES as error:
        reason = error.explanation if isinstance(error, APIError) else error
        console.warn(f"the image {reference} was not removed ({reason}); `docker image rm {reference}` removes it")


def _own_base(profile: TargetProfile) -> BaseImage:
    return BaseImage(layers=(base_layer(profile),), environment={"PATH": _PATH}, python="/usr/bin/python3")


def _given_base(profile: TargetProfile, reference: str, engine: Engine | None, workspace: Path) -> BaseImage:
    if engine is None:
        msg = f"--base-image {reference} has to come from a container engine, and none answers"
        raise EngineUnavailableError(msg, next_step="Start one (`make engine`), or leave `--base-image` out.")
    return take_base_image(engine, reference, profile, workspace)


def _config(profile: TargetProfile, base: BaseImage, layers: Sequence[Layer], labels: Mapping[str, str]) -> bytes:
    environment = {**base.environment, **_ENVIRONMENT}
    origins = [*(["base"] * len(base.layers)), "runtime", "application"]
    return _json(
        {
            "architecture": profile.architecture.value,
            "os": "linux",
            "created": _CREATED,
            "config": {
                "User": profile.image.user,
                "Env": [f"{name}={value}" for name, value in environment.items()],
                "Entrypoint": [base.python, f"/{BUNDLE}/{PROGRAM}"],
                "Cmd": ["selftest"],
                "WorkingDir": f"/{BUNDLE}",
                "Labels": {**labels, "edge-bundler.target": profile.name},
            },
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [{"created": _CREATED, "created_by": f"edge-bundler: {origin}"} for origin in origins],
        }
    )


def _manifest(config: bytes, layers: Sequence[Layer]) -> bytes:
    return _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("application/vnd.oci.image.config.v1+json", _digest(config), len(config)),
            "layers": [
                _descriptor("application/vnd.oci.image.layer.v1.tar", layer.diff_id, layer.size_bytes) for layer in layers
            ],
        }
    )


def _archive_members(config: bytes, manifest: bytes, layers: Sequence[Layer], reference: str) -> list[Member]:
    described = _descriptor("application/vnd.oci.image.manifest.v1+json", _digest(manifest), len(manifest))
    names = {
        "io.containerd.image.name": _full_name(reference),
        "org.opencontainers.image.ref.name": reference.rpartition(":")[2],
    }
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{**described, "annotations": names}],
    }
    docker_archive = [
        {
            "Config": _blob(_digest(config)),
            "RepoTags": [reference],
            "Layers": [_blob(layer.diff_id) for layer in layers],
        }
    ]
    return [
        _bytes_member(_blob(_digest(config)), config),
        _bytes_member(_blob(_digest(manifest)), manifest),
        *(_layer_member(layer) for layer in layers),
        _bytes_member("index.json", _json(index)),
        _bytes_member("manifest.json", _json(docker_archive)),
        _bytes_member("oci-layout", _json({"imageLayoutVersion": "1.0.0"})),
    ]


def _full_name(reference: str) -> str:
    """Spell a reference out as containerd names images: `docker.io/library/mobilenet_v2:arm64-qnnpack`."""
    registry, slash, _ = reference.partition("/")
    if not slash:
        return f"docker.io/library/{reference}"
    if registry == "localhost" or "." in registry or ":" in registry:
        return reference
    return f"docker.io/{reference}"


def _bytes_member(name: str, data: bytes) -> Member:
    return Member(name=name, mode=0o644, source=data)


def _layer_member(layer: Layer) -> Member:
    return Member(name=_blob(layer.diff_id), mode=0o644, source=layer.path)


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
