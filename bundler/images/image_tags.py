"""Names of device images in the engine: given after verification, and removed when no bundle needs them any more."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from docker.errors import ImageNotFound

from bundler import console
from bundler.engines.container_engine import Engine, asked, engine_errors
from bundler.images.device_image import BUNDLE_LABEL, DeviceImage, tag_image, untag_image
from bundler.resources import cache_directory

__all__ = ["TaggedImage", "name_image"]

_MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class TaggedImage:
    """The image that an earlier bundle names: its reference, its digest, and the SHA-256 of the bundle's runner.json."""

    reference: str
    digest: str
    bundle_sha256: str


def name_image(engine: Engine, image: DeviceImage, reference: str, *, bundle: Path, replaced: TaggedImage | None) -> None:
    """Tag the image of a finished bundle, and remove the image of the bundle that it replaced if nothing else needs that.

    Other bundles that name the same image keep it. They are known by records in the cache, one for each bundle's folder.

    Raises:
        EngineError: the engine failed.
    """
    before = _held(engine, reference)
    tag_image(engine, image, reference)
    _record(image.digest, bundle)
    if before is not None and before != image.id:
        console.warn(f"{reference} was the name of another image until now ({before[:19]})")
    if replaced is not None and replaced.digest != image.digest and not _needed(replaced.digest):
        held = _held(engine, replaced.reference)
        if held is not None and held != image.id and _label(engine, replaced.reference) == replaced.bundle_sha256:
            untag_image(engine, replaced.reference)
            console.detail(f"removed the replaced image {replaced.reference}")


def _held(engine: Engine, reference: str) -> str | None:
    with engine_errors(f"looking for {reference}"):
        try:
            return str(asked(engine, lambda: engine.client.images.get(reference)).id)
        except ImageNotFound:
            return None


def _label(engine: Engine, reference: str) -> str | None:
    with engine_errors(f"inspecting {reference}"):
        labels: dict[str, str] = asked(engine, lambda: engine.client.images.get(reference)).labels
    return labels.get(BUNDLE_LABEL)


def _record(digest: str, bundle: Path) -> None:
    """Note that a bundle names an image; without that note the image may be removed when another bundle is rebuilt."""
    home = str(bundle.resolve())
    note = _notes(digest) / hashlib.sha256(home.encode(errors="surrogateescape")).hexdigest()[:32]
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_bytes(home.encode(errors="surrogateescape"))
    except OSError as error:
        console.warn(f"{note} was not written ({error.strerror}): it keeps the image of {bundle} in the engine")


def _needed(digest: str) -> bool:
    """Return whether a bundle whose folder still exists names the image; notes about others are removed."""
    needed = False
    for note in sorted(_notes(digest).glob("*")):
        manifest = Path(note.read_bytes().decode(errors="surrogateescape")) / _MANIFEST
        try:
            names = digest.encode() in manifest.read_bytes()
        except OSError:
            names = False
        needed |= names
        if not names:
            note.unlink(missing_ok=True)
    return needed


def _notes(digest: str) -> Path:
    return cache_directory() / "images" / digest.removeprefix("sha256:")
