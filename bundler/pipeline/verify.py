"""Proving an existing bundle again, from its own files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundler import console
from bundler.containers.engine import Engine
from bundler.containers.image import DeviceImage
from bundler.containers.image_tags import name_image
from bundler.errors import BundleDamagedError, BundleNotFoundError, EngineUnavailableError
from bundler.manifest import (
    Evidence,
    FleetRecord,
    ImageRecord,
    Manifest,
    Verdict,
    read_manifest,
)
from bundler.packaging.archive import write_archive
from bundler.packaging.checksums import check_checksums, sha256_of
from bundler.packaging.papers import write_papers
from bundler.packaging.placing import place, recover, recover_all, workshop
from bundler.packaging.staging import model_path
from bundler.pipeline.fleet import foreign_image, may_be_exact, prove_in_the_fleet
from bundler.pipeline.ledger import host_place, image_place, make_ledger
from bundler.pipeline.proof import default_reference, engine_or_reason, image_for, image_record, prove
from bundler.targets import TargetProfile
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


def verify_bundle(directory: Path, target: TargetProfile, *, explain: bool = False) -> Verification:
    """Check every file of a bundle, and execute its runner again on every CPU of the profile.

    What was executed now and says more than the bundle's record, or contradicts it, is written into the bundle; what could not
    be executed replaces nothing. With `explain`, the INT8
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
    home = directory.resolve()  # `.` has no name, and nothing could be put beside it
    files = sorted([*runner["files"], "runner.json"])
    _check_models(manifest, directory)
    with (
        workshop(home) as folder,
        engine_or_reason() as engine,
        image_for(
            target,
            identifier=manifest.bundle,
            bundle=directory,
            files=files,
            base_image=_given_base(manifest, target),
            engine=engine,
            workspace=folder,
        ) as image,
    ):
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
        reference = default_reference(manifest.model.name, target, image)
        renewed, contradictions = _renewed(manifest, evidence, fleet, image_record(image, reference))
        for contradiction in contradictions:
            console.warn(f"the bundle's evidence was false and is replaced: {contradiction}")
        if explain:
            renewed = _explained(renewed, directory, target, files, samples, runner, image, engine, folder)
        if renewed != manifest:
            _rewrite(home, folder, renewed, target, renewed.image.reference if renewed.image else reference)
        if image is not None and isinstance(engine, Engine) and renewed.image == image_record(image, reference):
            name_image(engine, image, reference, bundle=home, replaced=None)
    return Verification(
        directory=directory,
        evidence=evidence,
        fleet=fleet,
        contradictions=contradictions,
        manifest=renewed,
        rewritten=renewed != manifest,
    )


def _check_models(manifest: Manifest, directory: Path) -> None:
    """Refuse a manifest that speaks of other models than those in the bundle.

    Raises:
        BundleDamagedError: the manifest names another checksum.
    """
    for mode in manifest.modes:
        if sha256_of(directory / model_path(mode.name)) != mode.onnx.sha256:
            raise BundleDamagedError(
                f"{directory / 'manifest.json'} names another SHA-256 than that of {model_path(mode.name)}",
                next_step="Restore the bundle from its .tar.gz, or build it again.",
            )


def _explained(
    manifest: Manifest,
    directory: Path,
    target: TargetProfile,
    files: list[str],
    samples: Mapping[str, int],
    runner: Mapping[str, Any],
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


def _rewrite(directory: Path, folder: Path, manifest: Manifest, target: TargetProfile, reference: str) -> None:
    renewed = folder / directory.name
    shutil.copytree(directory, renewed)
    write_papers(renewed, manifest, target, image_reference=reference)
    archive = folder / f"{directory.name}.tar.gz"
    write_archive(renewed, archive, root=manifest.bundle)
    place(renewed, directory, archive=archive, archive_path=directory.with_name(archive.name))
    console.step(f"The manifest of {directory} has the new evidence")
