"""Proving an existing bundle again, from its own files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundler import console
from bundler.containers.engine import Engine
from bundler.errors import BundleDamagedError, BundleNotFoundError, EngineUnavailableError
from bundler.manifest import (
    Evidence,
    FleetRecord,
    ImageRecord,
    Manifest,
    ModeRecord,
    Verdict,
    judge_exactness,
    judge_mode,
    read_manifest,
)
from bundler.packaging.archive import write_archive
from bundler.packaging.checksums import check_checksums
from bundler.packaging.papers import write_papers
from bundler.packaging.placing import place, recover, recover_all, workshop
from bundler.pipeline.fleet import foreign_image, may_be_exact, prove_in_the_fleet
from bundler.pipeline.ledger import host_place, image_place, make_ledger
from bundler.pipeline.proof import engine_or_reason, image_for, prove
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
    recover_all(folder)
    found = sorted(path.parent for path in folder.glob("*/manifest.json") if not path.parent.name.startswith("."))
    bundles = tuple(path for path in found if path.suffix != ".failed")
    if not bundles:
        raise BundleNotFoundError(
            f"no bundle for {target.name} is below {output}",
            next_step=f"Build one: `bundler bundle mobilenet_v2 --target {target.name}`, or name the bundle's folder.",
        )
    return bundles


def verify_bundle(directory: Path, target: TargetProfile, *, explain: bool = False) -> Verification:
    """Check every file of a bundle, and execute its runner again on every CPU of the profile.

    A better record is written into the bundle, a worse one never: evidence that passed once stays. With `explain`, the INT8
    graphs are run tensor by tensor as well, here and on another architecture, and the new ledger is written into the bundle.

    Raises:
        BundleDamagedError: a file is changed, missing or new, or the manifest cannot be read; each is named.
        EngineError: the engine or an image failed.
    """
    recover(directory.resolve())
    manifest = read_manifest(directory)
    console.heading(f"{manifest.bundle} ({directory})")
    check_checksums(directory)
    console.step("Every file is the one that was proved")
    if manifest.target.name != target.name:
        raise BundleDamagedError(
            f"{directory} was built for {manifest.target.name}, not for {target.name}",
            next_step=f"Name its own target: `bundler verify --target {manifest.target.name} {directory}`.",
        )
    runner = _runner_document(directory)
    reference = manifest.image.reference if manifest.image else f"{manifest.model.name}:{target.name}"
    home = directory.resolve()  # `.` has no name, and nothing could be put beside it
    files = sorted([*runner["files"], "runner.json"])
    with workshop(home) as folder, engine_or_reason() as engine:
        image = image_for(
            target,
            identifier=manifest.bundle,
            bundle=directory,
            files=files,
            reference=reference,
            base_image=_given_base(manifest, target),
            engine=engine,
            workspace=folder,
        )
        if image and manifest.image and image.digest != manifest.image.digest:
            console.warn(
                f"the image is {image.digest}, not {manifest.image.digest}: the base image's packages have changed since"
            )
        modes = tuple(mode.name for mode in manifest.modes)
        samples = {str(mode["name"]): int(mode["samples"]) for mode in runner["modes"]}
        evidence = prove(target, modes, bundle=directory, image=image, engine=engine, pictures=sum(samples.values()))
        records = {str(mode.name): mode.quantization for mode in manifest.modes}
        fleet = prove_in_the_fleet(
            target,
            may_be_exact(records, evidence),
            bundle=directory,
            files=files,
            samples=samples,
            engine=engine,
            workspace=folder,
        )
        better = _better(manifest, evidence, fleet, image)
        if explain:
            better = _explained(better, directory, target, files, samples, runner, image, engine, folder)
        if better != manifest:
            _rewrite(home, folder, better, target, reference)
    return Verification(directory=directory, evidence=evidence, fleet=fleet, manifest=better, rewritten=better != manifest)


def _explained(
    manifest: Manifest,
    directory: Path,
    target: TargetProfile,
    files: list[str],
    samples: Mapping[str, int],
    runner: Mapping[str, Any],
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
                level = str(runner["graph_optimization_level"])
                ledger = make_ledger(
                    directory, mode.name, level=level, samples=samples[mode.name], places=places, workspace=folder
                )
                modes.append(mode.model_copy(update={"ledger": ledger}))
            else:
                modes.append(mode)
    return manifest.model_copy(update={"modes": tuple(modes)})


def _runner_document(directory: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((directory / "runner.json").read_text(encoding="utf-8"))  # its checksum was checked
    return document


def _given_base(manifest: Manifest, target: TargetProfile) -> str | None:
    if manifest.image is None or manifest.image.base == f"debian:{target.image.suite}":
        return None
    return manifest.image.base


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


def _rewrite(directory: Path, folder: Path, manifest: Manifest, target: TargetProfile, reference: str) -> None:
    renewed = folder / directory.name
    shutil.copytree(directory, renewed)
    write_papers(renewed, manifest, target, image_reference=reference)
    archive = folder / f"{directory.name}.tar.gz"
    write_archive(renewed, archive, root=manifest.bundle)
    place(renewed, directory, archive=archive, archive_path=directory.with_name(archive.name))
    console.step(f"The manifest of {directory} has the new evidence")
