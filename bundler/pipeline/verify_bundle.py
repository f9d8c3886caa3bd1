"""Verifying an existing bundle again, from its own files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundler import console
from bundler.device.runner_json import PROGRAM, RunnerDocument
from bundler.engines.container_engine import Engine
from bundler.errors import BundleDamagedError, BundleNotFoundError, EngineUnavailableError, UntrustedBundleError
from bundler.files.sha256 import sha256_of
from bundler.images.device_image import DeviceImage
from bundler.images.image_tags import name_image
from bundler.manifest import Evidence, FleetRecord, ImageRecord, Manifest, Verdict
from bundler.packaging.archive import write_archive
from bundler.packaging.device_program import device_program_sha256
from bundler.packaging.documents import write_papers
from bundler.packaging.placing import place, recover, recover_all, workshop
from bundler.packaging.reading import CheckedBundle, check_bundle
from bundler.pipeline.fleet import foreign_image, may_be_exact, prove_in_the_fleet
from bundler.pipeline.proof import default_reference, engine_or_reason, image_for, image_record, prove
from bundler.targets import TargetProfile
from bundler.verification.layer_comparison import host_place, image_place, make_ledger
from bundler.verification.renewal import Contradiction, renew

__all__ = ["Verification", "find_bundles", "verify_bundle"]


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was seen just now (`evidence`, and `fleet` on other targets), and what the bundle's manifest says after it.

    `contradictions` are records of the bundle that turned out false, and were replaced.
    """

    directory: Path
    evidence: Mapping[str, tuple[Evidence, ...]]
    fleet: Mapping[str, tuple[FleetRecord, ...]]
    contradictions: tuple[Contradiction, ...]
    manifest: Manifest
    rewritten: bool

    @property
    def verdict(self) -> Verdict:
        verdicts = {item.verdict for items in self.evidence.values() for item in items}
        if "failed" in verdicts:
            return "failed"
        return "passed" if verdicts == {"passed"} else "not_run"


def find_bundles(output: Path, target: TargetProfile) -> tuple[Path, ...]:
    """Return every bundle that was built for a target below `output`, by name.

    Raises:
        BundleNotFoundError: there is none.
    """
    folder = output / target.name
    recover_all(folder)
    found = sorted(path.parent for path in folder.glob("*/manifest.json") if not path.parent.name.startswith("."))
    bundles = tuple(path for path in found if path.suffix != ".failed")
    if not bundles:
        raise BundleNotFoundError(
            f"no bundle for {target.name} is below {output}",
            next_step=f"Build one: `bundler bundle mobilenet_v2 --target {target.name}`, or name the bundle's folder.",
        )
    return bundles


def verify_bundle(
    directory: Path,
    target: TargetProfile,
    *,
    base_image: str | None = None,
    trust_bundle: bool = False,
    explain: bool = False,
) -> Verification:
    """Check every file of a bundle, and execute its device program again on every CPU of the profile.

    What was executed now and says more than the bundle's record, or contradicts it, is written into the bundle; what could not
    be executed replaces nothing. With `explain`, the INT8 graphs are run tensor by tensor as well, here and on another
    architecture, and the new ledger is written into the bundle.

    Nothing of the bundle is used before it was checked as a whole, and then only from a private copy of what was checked.
    Its device program is executed in a container; where no engine answers, as a process of this host, if it is the one that
    this version writes into bundles.

    Args:
        directory: the bundle's folder.
        target: the profile of the target that it was built for.
        base_image: what the device image begins with instead of Debian's packages; never taken from the bundle.
        trust_bundle: execute any device program on this host.
        explain: compare the INT8 graphs tensor by tensor.

    Raises:
        BundleDamagedError: the bundle is not plain, whole and consistent (`check_bundle`), or is for another target.
        UntrustedBundleError: it was built on a base image that `base_image` does not name.
        EngineError: the engine or an image failed.
    """
    recover(directory.resolve())
    checked = check_bundle(directory)
    manifest = checked.manifest
    console.heading(f"{manifest.bundle} ({directory})")
    console.step("Every file has the checksum that it was built with")
    _require_target(checked, target)
    _require_base(manifest, target, base_image)
    home = directory.resolve()  # `.` has no name, and nothing could be put beside it
    files = checked.image_files
    with workshop(home) as folder, engine_or_reason() as engine:
        bundle = folder / manifest.model.name
        checked.copy_to(bundle)
        with image_for(
            target,
            identifier=manifest.bundle,
            bundle=bundle,
            files=files,
            base_image=base_image,
            engine=engine,
            workspace=folder,
        ) as image:
            if image and manifest.image and image.digest != manifest.image.digest:
                console.warn(
                    f"the image is {image.digest}, not {manifest.image.digest}: the base image's packages have changed since"
                )
            modes = tuple(mode.name for mode in manifest.modes)
            samples = {str(mode.name): mode.samples for mode in checked.runner.modes}
            withheld = _reason_to_withhold(checked, engine, trust_bundle=trust_bundle)
            if withheld:
                console.warn(f"not executed: {withheld}")
                evidence = _withheld(modes, target, withheld)
            else:
                evidence = prove(target, modes, bundle=bundle, image=image, engine=engine, pictures=sum(samples.values()))
            records = {str(mode.name): mode.quantization for mode in manifest.modes}
            fleet = prove_in_the_fleet(
                target,
                () if withheld else may_be_exact(records, evidence),
                bundle=bundle,
                files=files,
                samples=samples,
                engine=engine,
                workspace=folder,
            )
            # Never the name that the bundle gives: another image may have it.
            record = image_record(image, default_reference(manifest.model.name, target, image))
            renewed, contradictions = _renewed(manifest, evidence, fleet, record)
            for contradiction in contradictions:
                console.warn(f"the bundle's evidence was false and is replaced: {contradiction}")
            if explain:
                renewed = _explained(renewed, bundle, target, files, samples, checked.runner, image, engine, folder)
            replaced = _replaced(checked)
            if replaced:
                console.warn(f"{directory} was replaced while it was verified: nothing is written into the new bundle")
                renewed = manifest
            if renewed != manifest:
                reference = renewed.image.reference if renewed.image else default_reference(manifest.model.name, target, None)
                _rewrite(bundle, home, folder, renewed, target, reference)
            if (
                image is not None
                and record is not None
                and isinstance(engine, Engine)
                and renewed.image == record
                and not replaced
            ):
                name_image(engine, image, record.reference, bundle=home, replaced=None)
    return Verification(
        directory=directory,
        evidence=evidence,
        fleet=fleet,
        contradictions=contradictions,
        manifest=renewed,
        rewritten=renewed != manifest,
    )


def _replaced(checked: CheckedBundle) -> bool:
    """Return whether another command put other files in the bundle's place since it was checked."""
    try:
        return sha256_of(checked.directory / "manifest.json") != checked.digests["manifest.json"]
    except OSError:
        return True


def _require_target(checked: CheckedBundle, target: TargetProfile) -> None:
    built_for = checked.manifest.target.name
    if built_for != target.name:
        raise BundleDamagedError(
            f"{checked.directory} was built for {built_for}, not for {target.name}",
            next_step=f"Name its own target: `bundler verify --target {built_for} {checked.directory}`.",
        )


def _require_base(manifest: Manifest, target: TargetProfile, base_image: str | None) -> None:
    """Refuse a base image that only the bundle asks for: it would be pulled from wherever the bundle says."""
    if base_image is None and manifest.image is not None and manifest.image.base != f"debian:{target.image.suite}":
        raise UntrustedBundleError(
            f"{manifest.bundle} was built on {manifest.image.base}, and a bundle may not choose what is pulled",
            next_step=f"If you trust that image, name it: `--base-image {manifest.image.base}`.",
        )


def _reason_to_withhold(checked: CheckedBundle, engine: Engine | EngineUnavailableError, *, trust_bundle: bool) -> str:
    """Return why the bundle's device program may not be executed; empty where it may."""
    if checked.digests[PROGRAM] == device_program_sha256():
        return ""
    console.warn("its device program is not the one of this version: the evidence is what that program reports")
    if trust_bundle or isinstance(engine, Engine):
        return ""
    return (
        "no container engine answers, and the bundle's device program is not the one of this version; "
        "--trust-bundle executes it on this host"
    )


def _withheld(modes: tuple[str, ...], target: TargetProfile, reason: str) -> Mapping[str, tuple[Evidence, ...]]:
    nothing = tuple(Evidence(cpu=cpu.name, verdict="not_run", reason=reason) for cpu in target.verification.cpus)
    return dict.fromkeys(modes, nothing)


def _explained(
    manifest: Manifest,
    directory: Path,
    target: TargetProfile,
    files: tuple[str, ...],
    samples: Mapping[str, int],
    runner: RunnerDocument,
    image: DeviceImage | None,
    engine: Engine | EngineUnavailableError,
    folder: Path,
) -> Manifest:
    """Return the manifest with a new ledger of each INT8 mode."""
    identifier = manifest.bundle
    with foreign_image(target, identifier, directory, files, image, engine, folder) as (other, its_image):
        places = [place for place in (host_place(directory, target), image_place(other, its_image, engine)) if place]
        modes = []
        for mode in manifest.modes:
            if mode.quantization is not None:
                level = runner.graph_optimization_level
                ledger = make_ledger(
                    directory, mode.name, level=level, samples=samples[mode.name], places=places, workspace=folder
                )
                modes.append(mode.model_copy(update={"ledger": ledger}))
            else:
                modes.append(mode)
    return manifest.model_copy(update={"modes": tuple(modes)})


def _renewed(
    manifest: Manifest,
    evidence: Mapping[str, Sequence[Evidence]],
    fleet: Mapping[str, Sequence[FleetRecord]],
    image: ImageRecord | None,
) -> tuple[Manifest, tuple[Contradiction, ...]]:
    """Return the manifest with what is true now, and what of it was contradicted.

    Every piece of evidence names the image that it is about. The manifest names the image just built if all CPUs passed in it.
    """
    modes, contradictions = renew(manifest.modes, evidence, fleet)
    if image and (manifest.image is None or image.digest != manifest.image.digest):
        if all(item.verdict == "passed" for items in evidence.values() for item in items):
            modes = tuple(mode.model_copy(update={"evidence": tuple(evidence[mode.name])}) for mode in modes)
            modes, _ = renew(modes, {}, {})
        else:
            image = manifest.image
    else:
        image = manifest.image
    return manifest.model_copy(update={"modes": modes, "image": image}), contradictions


def _rewrite(bundle: Path, directory: Path, folder: Path, manifest: Manifest, target: TargetProfile, reference: str) -> None:
    write_papers(bundle, manifest, target, image_reference=reference)
    archive = folder / f"{directory.name}.tar.gz"
    write_archive(bundle, archive, root=manifest.bundle)
    place(bundle, directory, archive=archive, archive_path=directory.with_name(archive.name))
    console.step(f"The manifest of {directory} has the new evidence")
