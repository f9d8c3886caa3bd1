"""Verification of an existing bundle, from its own files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bundler import console
from bundler.containers.engine import Engine
from bundler.errors import BundleDamagedError, BundleNotFoundError, EngineUnavailableError, UntrustedBundleError
from bundler.manifest import (
    Evidence,
    FleetRecord,
    ImageRecord,
    Manifest,
    ModeRecord,
    Verdict,
    judge_exactness,
    judge_mode,
)
from bundler.packaging.archive import write_archive
from bundler.packaging.checksums import sha256_of
from bundler.packaging.papers import write_papers
from bundler.packaging.placing import place, workshop
from bundler.packaging.reading import CheckedBundle, check_bundle
from bundler.packaging.runner_document import RunnerDocument
from bundler.pipeline.fleet import foreign_image, may_be_exact, prove_in_the_fleet
from bundler.pipeline.ledger import host_place, image_place, make_ledger
from bundler.pipeline.proof import engine_or_reason, image_for, prove
from bundler.resources import resource
from bundler.targets import TargetProfile

__all__ = ["Verification", "find_bundles", "verify_bundle"]


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was seen just now (`evidence`, and `fleet` on other targets), and what the bundle's manifest says after it."""

    directory: Path
    evidence: Mapping[str, tuple[Evidence, ...]]
    fleet: Mapping[str, tuple[FleetRecord, ...]]
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
    """Check every file of a bundle, and execute its runner again on every CPU of the profile.

    A better record is written into the bundle, a worse one never: evidence that passed once stays. With `explain`, the INT8
    graphs are run tensor by tensor as well, here and on another architecture, and the new ledger is written into the bundle.

    Nothing of the bundle is used before it was checked as a whole, and then only from a private copy of what was checked.
    Its runner is executed in a container; where no engine answers, as a process of this host, if it is the one that this
    version writes into bundles.

    Args:
        directory: the bundle's folder.
        target: the profile of the target that it was built for.
        base_image: what the device image begins with instead of Debian's packages; never taken from the bundle.
        trust_bundle: execute any runner on this host.
        explain: compare the INT8 graphs tensor by tensor.

    Raises:
        BundleDamagedError: the bundle is not plain, whole and consistent (`check_bundle`), or is for another target.
        UntrustedBundleError: it was built on a base image that `base_image` does not name.
        EngineError: the engine or an image failed.
    """
    checked = check_bundle(directory)
    manifest = checked.manifest
    console.heading(f"{manifest.bundle} ({directory})")
    console.step("Every file has the checksum that it was built with")
    _require_target(checked, target)
    _require_base(manifest, target, base_image)
    reference = f"{manifest.model.name}:{target.name}"  # never the one that the bundle names: it may be another image's
    home = directory.resolve()  # `.` has no name, and nothing could be put beside it
    files = checked.image_files
    with workshop(home) as folder, engine_or_reason() as engine:
        bundle = folder / manifest.model.name
        checked.copy_to(bundle)
        image = image_for(
            target,
            identifier=manifest.bundle,
            bundle=bundle,
            files=files,
            reference=reference,
            base_image=base_image,
            engine=engine,
            workspace=folder,
        )
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
        better = _better(manifest, evidence, fleet, image)
        if explain:
            better = _explained(better, bundle, target, files, samples, checked.runner, image, engine, folder)
        if better != manifest:
            _rewrite(bundle, home, folder, better, target, reference)
    return Verification(directory=directory, evidence=evidence, fleet=fleet, manifest=better, rewritten=better != manifest)


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
    """Return why the bundle's runner may not be executed; empty where it may."""
    if checked.digests["runner.py"] == sha256_of(resource("templates", "runner.py")):
        return ""
    console.warn("its runner.py is not the one of this version: the evidence is what that program says of itself")
    if trust_bundle or isinstance(engine, Engine):
        return ""
    return (
        "no container engine answers, and the bundle's runner.py is not the one of this version; "
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
    image: ImageRecord | None,
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


def _better(
    manifest: Manifest,
    seen: Mapping[str, tuple[Evidence, ...]],
    fleet: Mapping[str, tuple[FleetRecord, ...]],
    image: ImageRecord | None,
) -> Manifest:
    """Return the manifest with what is better in the new evidence; the old one where nothing is.

    An image with another digest replaces the recorded one only with evidence that passed throughout: old evidence is about
    the old image.
    """
    if image and (manifest.image is None or image.digest != manifest.image.digest):
        if any(item.verdict != "passed" for items in seen.values() for item in items):
            return manifest
        modes = tuple(_with_evidence(mode, seen[mode.name], fleet.get(mode.name, ())) for mode in manifest.modes)
        return manifest.model_copy(update={"modes": modes, "image": image})
    modes = tuple(
        _with_evidence(mode, _merged(mode.evidence, seen[mode.name]), _merged_fleet(mode.fleet, fleet.get(mode.name, ())))
        for mode in manifest.modes
    )
    return manifest.model_copy(update={"modes": modes})


def _merged(recorded: tuple[Evidence, ...], seen: tuple[Evidence, ...]) -> tuple[Evidence, ...]:
    """Keep the better of each CPU's two records, and those of CPUs that the profile no longer names."""
    by_cpu = {item.cpu: item for item in recorded}
    better = {new.cpu: new for new in seen if new.cpu not in by_cpu or _improves(new, by_cpu[new.cpu])}
    return tuple({**by_cpu, **better}.values())


def _merged_fleet(recorded: tuple[FleetRecord, ...], seen: tuple[FleetRecord, ...]) -> tuple[FleetRecord, ...]:
    by_target = {record.target: record.evidence for record in recorded}
    new = {record.target: _merged(by_target.get(record.target, ()), record.evidence) for record in seen}
    return tuple(FleetRecord(target=name, evidence=evidence) for name, evidence in {**by_target, **new}.items())


def _improves(new: Evidence, old: Evidence) -> bool:
    """Say whether `new` tells more: what was executed more than what was not, and a pass is not taken back."""
    return (old.verdict, new.verdict) in {("not_run", "passed"), ("not_run", "failed"), ("failed", "passed")}


def _with_evidence(mode: ModeRecord, evidence: tuple[Evidence, ...], fleet: tuple[FleetRecord, ...]) -> ModeRecord:
    supported, reason = judge_mode(evidence)
    exact, exact_reason = judge_exactness(mode.quantization, evidence, fleet)
    return mode.model_copy(
        update={
            "evidence": evidence,
            "fleet": fleet,
            "supported": supported,
            "reason": reason,
            "exact": exact,
            "exact_reason": exact_reason,
        }
    )


def _rewrite(bundle: Path, directory: Path, folder: Path, manifest: Manifest, target: TargetProfile, reference: str) -> None:
    write_papers(bundle, manifest, target, image_reference=reference)
    archive = folder / f"{directory.name}.tar.gz"
    write_archive(bundle, archive, root=manifest.bundle)
    place(bundle, directory, archive=archive, archive_path=directory.with_name(archive.name))
    console.step(f"The manifest of {directory} has the new evidence")
