"""The device image: base, runtime and application layers, assembled without an engine, so that equal inputs give equal bytes.

`docker build` records the current time in an image. This module writes the archive for `docker load` directly: a docker-archive
that is also an OCI image layout, as `docker save` writes it since Docker 25. Podman and skopeo read it too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from docker.errors import APIError, ImageNotFound

from bundler import console
from bundler.architecture import Architecture
from bundler.device.runner_json import PROGRAM
from bundler.engines.container_engine import ENGINE_FAILURES, Engine, call_engine, engine_errors
from bundler.errors import EngineUnavailableError, ImageError
from bundler.files.atomic_write import atomic_write
from bundler.files.sha256 import oci_digest
from bundler.files.tar_files import Member, write_tar
from bundler.images.base_image import base_layer
from bundler.images.custom_base import BaseImage, take_base_image
from bundler.images.layers import Layer, file_members, with_directories, write_layer
from bundler.images.runtime_layer import RUNTIME, Wheel, runtime_layer
from bundler.targets import TargetProfile

__all__ = [
    "BUNDLE",
    "BUNDLE_LABEL",
    "DeviceImage",
    "ImageArchive",
    "ImageRequest",
    "assemble_image",
    "loaded_image",
    "tag_image",
    "untag_image",
]

BUNDLE = "opt/bundle"
BUNDLE_LABEL = "edge-bundler.bundle"  # SHA-256 of the runner.json in the image

_LOAD_SECONDS = 300.0  # plus the time at the lowest rate
_SLOWEST_LOAD = 1e6  # bytes per second, of an SD card

_CREATED = "1970-01-01T00:00:00Z"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = {
    "PYTHONPATH": f"/{RUNTIME}",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime 1.32 for Linux sends telemetry otherwise
}


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """The application layer of a device image, the names and labels of the image, and its base.

    Attributes:
        bundle: folder with the files.
        files: paths in `bundle` of the files to copy to /opt/bundle.
        reference: `REPOSITORY:TAG` under which the archive names the image.
        labels: of the image's config.
        base_image: reference of the user's base image; None for one built from Debian packages.
    """

    bundle: Path
    files: Sequence[str]
    reference: str
    labels: Mapping[str, str]
    base_image: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImageArchive:
    """An image as a file for `docker load`.

    `digest` is `sha256:HEX` of its config, `diff_ids` are those of its uncompressed layers, `size_bytes` is the sum of their
    sizes; `base` is `debian:SUITE`, or the reference of the user's base image.
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

    `id` is the engine's id of the image. Containers are started from it, because a tag can be moved to another image at any
    time. The other attributes are those of ImageArchive.
    """

    id: str
    digest: str
    architecture: Architecture
    size_bytes: int
    base: str
    wheels: tuple[Wheel, ...]


def assemble_image(profile: TargetProfile, request: ImageRequest, *, engine: Engine | None, workspace: Path) -> ImageArchive:
    """Write `workspace/image.tar`: the requested files at /opt/bundle, on the runtime and base layers of the target.

    Without `base_image` no engine is needed.

    Raises:
        ImageError: the base image or the wheels cannot be obtained, or the base image does not fit the target.
        EngineError: the engine failed while exporting the base image.
        OutOfSpaceError: the disk is full.
    """
    base = _custom_base(profile, request.base_image, engine, workspace) if request.base_image else _debian_base(profile)
    runtime = runtime_layer(profile)
    application = write_layer(workspace / "application.tar", file_members(request.bundle, request.files, below=BUNDLE))
    layers = (*base.layers, runtime.layer, application)
    config = _config(profile, base, layers, request.labels)
    members = _archive_members(config, _manifest(config, layers), layers, request.reference)
    path = workspace / "image.tar"
    with atomic_write(path) as partial, partial.open("wb") as file:
        write_tar(file, with_directories(members), tar_format="gnu")
    return ImageArchive(
        path=path,
        reference=request.reference,
        digest=oci_digest(config),
        base=request.base_image or f"debian:{profile.image.suite}",
        size_bytes=sum(layer.size_bytes for layer in layers),
        wheels=runtime.wheels,
        architecture=profile.architecture,
        diff_ids=tuple(layer.diff_id for layer in layers),
    )


@contextmanager
def loaded_image(engine: Engine, archive: ImageArchive) -> Iterator[DeviceImage]:
    """Load an archive into the engine and check that the engine holds that image; remove its reference at the end.

    The image stays in the engine if it was given another tag meanwhile.

    Raises:
        EngineError: the engine failed.
        ImageError: the image in the engine has other layers or another architecture than the archive.
    """
    console.step(f"Loading the device image ({archive.size_bytes / 1e6:.0f} MB) into {engine.name}")
    try:
        with engine_errors("loading the device image"), archive.path.open("rb") as file:
            call_engine(
                engine, lambda: engine.client.images.load(file), seconds=_LOAD_SECONDS + archive.size_bytes / _SLOWEST_LOAD
            )
        yield _checked(engine, archive)
    finally:
        untag_image(engine, archive.reference)


def _checked(engine: Engine, archive: ImageArchive) -> DeviceImage:
    with engine_errors("inspecting the device image"):
        held = call_engine(engine, lambda: engine.client.images.get(archive.reference))
    # The id is the config's or the manifest's digest, depending on the engine's image store; diff_ids are the same in all.
    if tuple(held.attrs["RootFS"]["Layers"]) != archive.diff_ids:
        msg = f"the image {archive.reference} in the engine has other layers than the archive that was loaded"
        raise ImageError(msg, next_step="Run the same command again; `docker info` shows the engine's storage driver.")
    if held.attrs["Architecture"] != archive.architecture.value:
        found, wanted = held.attrs["Architecture"], archive.architecture.value
        msg = f"the image {archive.reference} in the engine is for linux/{found}, not for linux/{wanted}"
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
    """Tag an image as `REPOSITORY:TAG`; the tag is removed from another image that has it.

    Raises:
        EngineError: the engine failed.
    """
    repository, _, tag = reference.rpartition(":")
    with engine_errors(f"tagging the device image as {reference}"):
        call_engine(engine, lambda: engine.client.api.tag(image.id, repository, tag))


def untag_image(engine: Engine, reference: str) -> None:
    """Remove a reference, and the image if it has no other one and no container uses it. A missing reference is no error."""
    try:
        call_engine(engine, lambda: engine.client.images.remove(reference))
    except ImageNotFound:
        return
    except ENGINE_FAILURES as error:
        reason = error.explanation if isinstance(error, APIError) else error
        console.warn(f"the image {reference} was not removed ({reason}); remove it with `docker image rm {reference}`")


def _debian_base(profile: TargetProfile) -> BaseImage:
    return BaseImage(layers=(base_layer(profile),), environment={"PATH": _PATH}, python="/usr/bin/python3")


def _custom_base(profile: TargetProfile, reference: str, engine: Engine | None, workspace: Path) -> BaseImage:
    if engine is None:
        msg = f"--base-image {reference} requires a container engine, and none answers"
        raise EngineUnavailableError(msg, next_step="Start one (`make engine`), or omit `--base-image`.")
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
            "config": _descriptor("application/vnd.oci.image.config.v1+json", oci_digest(config), len(config)),
            "layers": [
                _descriptor("application/vnd.oci.image.layer.v1.tar", layer.diff_id, layer.size_bytes) for layer in layers
            ],
        }
    )


def _archive_members(config: bytes, manifest: bytes, layers: Sequence[Layer], reference: str) -> list[Member]:
    described = _descriptor("application/vnd.oci.image.manifest.v1+json", oci_digest(manifest), len(manifest))
    annotations = {
        "io.containerd.image.name": _full_name(reference),
        "org.opencontainers.image.ref.name": reference.rpartition(":")[2],
    }
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{**described, "annotations": annotations}],
    }
    docker_archive = [
        {
            "Config": _blob(oci_digest(config)),
            "RepoTags": [reference],
            "Layers": [_blob(layer.diff_id) for layer in layers],
        }
    ]
    return [
        _bytes_member(_blob(oci_digest(config)), config),
        _bytes_member(_blob(oci_digest(manifest)), manifest),
        *(_layer_member(layer) for layer in layers),
        _bytes_member("index.json", _json(index)),
        _bytes_member("manifest.json", _json(docker_archive)),
        _bytes_member("oci-layout", _json({"imageLayoutVersion": "1.0.0"})),
    ]


def _full_name(reference: str) -> str:
    """Return a reference in the full form of containerd: `docker.io/library/mobilenet_v2:arm64-qnnpack`."""
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


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
