"""Verifying an existing bundle again, from its own files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bundler import console
from bundler.engines.engine_availability import available_engine
from bundler.errors import BundleDamagedError, BundleNotFoundError, UntrustedBundleError
from bundler.files.sha256 import sha256_of
from bundler.manifest import CrossTargetRecord, Evidence, ImageRecord, Manifest, ModeRecord, Verdict, judged, overall_verdict
from bundler.models.specs import Mode
from bundler.packaging.installation import complete_installation, complete_installations, staging_directory
from bundler.packaging.reading import CheckedBundle, check_bundle
from bundler.pipeline.verified_installation import Installation, default_reference, image_record, verify_and_install
from bundler.targets import TargetProfile
from bundler.verification.renewal import Contradiction, renew
from bundler.verification.session import BundleUnderTest, VerificationRequest, VerificationResult, VerificationSession

__all__ = ["Verification", "VerifyOptions", "find_bundles", "verify_bundle"]

_OWN_BASE = re.compile(r"debian:[a-z][a-z0-9-]*")  # what versions before 0.2 wrote of a base that was made from packages


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Options of a verification.

    Args:
        base_image: image that the device image is based on instead of Debian's packages; never taken from the bundle.
        trust_bundle: execute a device program of another version of bundler on this host.
        explain: compare the INT8 graphs with torch, layer by layer.
    """

    base_image: str | None = None
    trust_bundle: bool = False
    explain: bool = False


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The evidence that was collected (`evidence`, and `fleet` on other targets), and the bundle's manifest after it.

    `contradictions` are records of the bundle that the new evidence contradicts and replaces.
    """

    directory: Path
    evidence: Mapping[Mode, tuple[Evidence, ...]]
    fleet: Mapping[Mode, tuple[CrossTargetRecord, ...]]
    contradictions: tuple[Contradiction, ...]
    manifest: Manifest
    rewritten: bool

    @property
    def verdict(self) -> Verdict:
        return overall_verdict(item for items in self.evidence.values() for item in items)


def find_bundles(output: Path, target: TargetProfile) -> tuple[Path, ...]:
    """Return every bundle for a target below `output`, by name.

    Raises:
        BundleNotFoundError: there is none.
    """
    folder = output / target.name
    complete_installations(folder)
    found = sorted(path.parent for path in folder.glob("*/manifest.json") if not path.parent.name.startswith("."))
    bundles = tuple(path for path in found if path.suffix != ".failed")
    if not bundles:
        raise BundleNotFoundError(
            f"{output} contains no bundle for {target.name}",
            next_step=f"Build one (`bundler bundle mobilenet_v2 --target {target.name}`), or give the bundle's folder.",
        )
    return bundles


def verify_bundle(directory: Path, target: TargetProfile, options: VerifyOptions) -> Verification:
    """Check every file of a bundle, and execute its device program on every CPU of the profile.

    Evidence that adds to the bundle's record or contradicts it is written into the bundle; a `not_run` record replaces nothing.
    With `explain`, the INT8 graphs are compared layer by layer, on this host and on another architecture, and the comparison is
    written into the bundle.

    Nothing of the bundle is used before all of it was checked, and then only from a private copy of what was checked. Its
    device program is executed in a container; without an engine as a process of this host, if this version wrote it.

    Raises:
        BundleDamagedError: the bundle is not plain, whole and consistent (`check_bundle`), or is for another target.
        UntrustedBundleError: it was built on a base image that `base_image` does not name.
        EngineError: the engine or an image failed.
    """
    complete_installation(directory.resolve())
    checked = check_bundle(directory)
    manifest = checked.manifest
    console.heading(f"{manifest.bundle} ({directory})")
    console.step("Every file has its recorded checksum")
    _require_target(checked, target)
    _require_base(manifest, options.base_image)
    home = directory.resolve()  # `.` has no name and no parent
    with staging_directory(home) as workspace, available_engine() as engine:
        bundle = workspace / manifest.model.name
        checked.copy_to(bundle)
        session = VerificationSession(
            engine=engine,
            workspace=workspace,
            target=target,
            bundle=BundleUnderTest(directory=bundle, document=checked.runner),
            base_image=options.base_image,
            trust_program=options.trust_bundle,
        )
        request = VerificationRequest(
            modes={mode.name: mode.quantization for mode in manifest.modes},
            compare="other architecture" if options.explain else "nothing",
            recorded_digest=None if manifest.image is None else manifest.image.digest,
        )
        contradictions: list[Contradiction] = []

        def describe(result: VerificationResult) -> Installation:
            renewed, found = _renewed(manifest, target, result, base_image=options.base_image)
            contradictions.extend(found)
            return _installation(checked, home, target, renewed, result)

        result, installation = verify_and_install(session, request, describe)
    rewritten = installation.directory is not None
    if rewritten:
        console.step(f"The manifest of {directory} has the new evidence")
    return Verification(
        directory=directory,
        evidence=result.evidence,
        fleet=result.other_targets,
        contradictions=tuple(contradictions),
        manifest=installation.manifest,
        rewritten=rewritten,
    )


def _require_target(checked: CheckedBundle, target: TargetProfile) -> None:
    built_for = checked.manifest.target.name
    if built_for != target.name:
        raise BundleDamagedError(
            f"{checked.directory} was built for {built_for}, not for {target.name}",
            next_step=f"Give its own target: `bundler verify --target {built_for} {checked.directory}`.",
        )


def _require_base(manifest: Manifest, base_image: str | None) -> None:
    """Refuse a base image that only the bundle names: it would be pulled from wherever the bundle says."""
    if base_image is None and manifest.image is not None and not _made_from_packages(manifest.image):
        raise UntrustedBundleError(
            f"{manifest.bundle} was built on {manifest.image.base}, and a bundle may not choose what is pulled",
            next_step=f"If you trust that image, give it: `--base-image {manifest.image.base}`.",
        )


def _made_from_packages(image: ImageRecord) -> bool:
    return image.base_source != "image" and _OWN_BASE.fullmatch(image.base) is not None


def _renewed(
    manifest: Manifest, target: TargetProfile, result: VerificationResult, *, base_image: str | None
) -> tuple[Manifest, tuple[Contradiction, ...]]:
    """Return the manifest with the new evidence, and the contradicted records.

    Each piece of evidence names the image in which it was collected. The manifest names the new image if all CPUs passed.
    """
    modes, contradictions = renew(manifest.modes, result.evidence, result.other_targets)
    for contradiction in contradictions:
        console.warn(f"the bundle's evidence was false and is replaced: {contradiction}")
    # Never under the name that the bundle gives: another image may have it.
    reference = default_reference(manifest.model.name, target, result.image)
    image = image_record(result.image, reference, base_image=base_image)
    if image is None or (manifest.image is not None and image.digest == manifest.image.digest) or result.verdict != "passed":
        image = manifest.image
    else:
        modes = tuple(judged(mode, result.evidence[mode.name], mode.fleet) for mode in modes)
    modes = tuple(_compared(mode, result) for mode in modes)
    return manifest.changed(modes=modes, image=image), contradictions


def _compared(mode: ModeRecord, result: VerificationResult) -> ModeRecord:
    comparison = result.layer_comparisons.get(mode.name)
    return mode if comparison is None else mode.changed(ledger=comparison)


def _installation(
    checked: CheckedBundle, home: Path, target: TargetProfile, renewed: Manifest, result: VerificationResult
) -> Installation:
    """Return what is written into the bundle: nothing if it was replaced meanwhile, or if its manifest has not changed."""
    manifest, model = checked.manifest, checked.manifest.model.name
    replaced = _replaced(checked)
    if replaced:
        console.warn(f"{checked.directory} was replaced while it was verified: nothing is written into the new bundle")
        renewed = manifest
    reference = renewed.image.reference if renewed.image else default_reference(model, target, None)
    changed = renewed != manifest
    return Installation(
        manifest=renewed,
        reference=reference,
        directory=home if changed else None,
        archive=home.with_name(f"{home.name}.tar.gz") if changed else None,
        named_for=None if replaced or not _is_recorded(renewed, target, result) else home,
    )


def _is_recorded(manifest: Manifest, target: TargetProfile, result: VerificationResult) -> bool:
    """Return whether the manifest names the device image that was just executed, under the name that it gets here."""
    image, recorded = result.image, manifest.image
    if image is None or recorded is None:
        return False
    return (recorded.digest, recorded.reference) == (image.digest, default_reference(manifest.model.name, target, image))


def _replaced(checked: CheckedBundle) -> bool:
    """Return whether another command installed another bundle in its place since it was checked."""
    try:
        return sha256_of(checked.directory / "manifest.json") != checked.digests["manifest.json"]
    except OSError:
        return True
