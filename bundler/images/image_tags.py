"""Tags of device images in the engine: added after verification, and removed when no bundle refers to the image any more."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from docker.errors import ImageNotFound

from bundler import console
from bundler.engines.container_engine import Engine, call_engine, engine_errors
from bundler.files.sha256 import oci_digest
from bundler.images.device_image import BUNDLE_LABEL, DeviceImage, tag_image, untag_image
from bundler.resources import cache_directory

__all__ = ["TaggedImage", "tag_bundle_image"]

_MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class TaggedImage:
    """The image that an earlier bundle's manifest names, and the SHA-256 of that bundle's runner.json."""

    reference: str
    digest: str
    bundle_sha256: str


def tag_bundle_image(engine: Engine, image: DeviceImage, reference: str, *, bundle: Path, replaced: TaggedImage | None) -> None:
    """Tag the image of a finished bundle, and remove the image of the bundle that it replaced if no other bundle refers to it.

    Which bundles refer to an image is recorded in the cache, by the path of each bundle's folder.

    Raises:
        EngineError: the engine failed.
    """
    before = _image_id(engine, reference)
    tag_image(engine, image, reference)
    _record(image.digest, bundle)
    if before is not None and before != image.id:
        console.warn(f"the tag {reference} was moved from another image ({before[:19]})")
    if replaced is not None and replaced.digest != image.digest and not _needed(replaced.digest):
        held = _image_id(engine, replaced.reference)
        if held is not None and held != image.id and _label(engine, replaced.reference) == replaced.bundle_sha256:
            untag_image(engine, replaced.reference)
            console.detail(f"removed the replaced image {replaced.reference}")


def _image_id(engine: Engine, reference: str) -> str | None:
    with engine_errors(f"inspecting {reference}"):
        try:
            return str(call_engine(engine, lambda: engine.client.images.get(reference)).id)
        except ImageNotFound:
            return None


def _label(engine: Engine, reference: str) -> str | None:
    with engine_errors(f"inspecting {reference}"):
        labels: dict[str, str] = call_engine(engine, lambda: engine.client.images.get(reference)).labels
    return labels.get(BUNDLE_LABEL)


def _record(digest: str, bundle: Path) -> None:
    """Record that a bundle refers to an image, so that rebuilding another bundle does not remove the image."""
    content = str(bundle.resolve()).encode(errors="surrogateescape")
    record = _records(digest) / oci_digest(content).removeprefix("sha256:")[:32]
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_bytes(content)
    except OSError as error:
        console.warn(f"cannot write {record} ({error.strerror}); another build may remove the image of {bundle}")


def _needed(digest: str) -> bool:
    """Return whether an existing bundle refers to the image; records of other bundles are removed."""
    needed = False
    for record in sorted(_records(digest).glob("*")):
        manifest = Path(record.read_bytes().decode(errors="surrogateescape")) / _MANIFEST
        try:
            names = digest.encode() in manifest.read_bytes()
        except OSError:
            names = False
        needed |= names
        if not names:
            record.unlink(missing_ok=True)
    return needed


def _records(digest: str) -> Path:
    return cache_directory() / "images" / digest.removeprefix("sha256:")
