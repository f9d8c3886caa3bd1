"""The order that `build` and `verify` share: image, verification, description, documents, archive, installation, image name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bundler import console
from bundler.images.device_image import DeviceImage
from bundler.images.image_tags import TaggedImage, tag_bundle_image
from bundler.manifest import ImageRecord, Manifest, WheelRecord
from bundler.packaging.archive import write_archive
from bundler.packaging.documents import write_documents
from bundler.packaging.installation import install_bundle
from bundler.targets import TargetProfile
from bundler.verification.executors import ContainerExecutor
from bundler.verification.session import VerificationRequest, VerificationResult, VerificationSession

__all__ = ["Installation", "default_reference", "image_record", "verify_and_install"]


@dataclass(frozen=True, kw_only=True)
class Installation:
    """What becomes of a bundle that was verified.

    Args:
        manifest: with the result of the verification.
        reference: name of the device image in the bundle's documents.
        directory: where the bundle is installed; None if its files stay as they are.
        archive: where its archive is installed, beside `directory`; None for none.
        named_for: folder of the bundle that the device image is named for in the engine; None if it gets no name.
        replaced: device image of the bundle that is replaced; it is removed if no other bundle needs it.
    """

    manifest: Manifest
    reference: str
    directory: Path | None
    archive: Path | None
    named_for: Path | None
    replaced: TaggedImage | None = None


def verify_and_install(
    session: VerificationSession, request: VerificationRequest, describe: Callable[[VerificationResult], Installation]
) -> tuple[VerificationResult, Installation]:
    """Verify a bundle, write its documents and its archive, install both, and name its device image.

    The device image exists in the engine until the end, and afterwards only if it was named.

    Raises:
        BundlerError: a step failed; nothing is installed before all steps are done.
    """
    with session.device() as executor:
        result = session.verify(executor, request)
        installation = describe(result)
        if installation.directory is not None:
            console.step(f"Writing {installation.directory}")
            _install(session, installation, installation.directory)
        if installation.named_for is not None and isinstance(executor, ContainerExecutor):
            tag_bundle_image(
                executor.engine,
                executor.image,
                installation.reference,
                bundle=installation.named_for,
                replaced=installation.replaced,
            )
    return result, installation


def _install(session: VerificationSession, installation: Installation, directory: Path) -> None:
    bundle, manifest = session.bundle.directory, installation.manifest
    write_documents(bundle, manifest, session.target, image_reference=installation.reference)
    archive = None
    if installation.archive is not None:
        archive = session.workspace / installation.archive.name
        write_archive(bundle, archive, root=manifest.bundle)
    install_bundle(bundle, directory, archive=archive, archive_path=installation.archive)


def default_reference(model: str, target: TargetProfile, image: DeviceImage | None) -> str:
    """Return `MODEL:TARGET-DIGEST`, with the first 12 digits of the image's digest; without an image `MODEL:TARGET`."""
    return f"{model}:{target.name}" + ("" if image is None else f"-{image.digest.removeprefix('sha256:')[:12]}")


def image_record(image: DeviceImage | None, reference: str, *, base_image: str | None) -> ImageRecord | None:
    """Return the manifest's record of a device image; `base_image` is None if its base was made from Debian's packages."""
    if image is None:
        return None
    return ImageRecord(
        reference=reference,
        digest=image.digest,
        size=image.size_bytes,
        base=image.base,
        base_source="packages" if base_image is None else "image",
        wheels=tuple(WheelRecord(name=wheel.file, sha256=wheel.sha256) for wheel in image.wheels),
    )
