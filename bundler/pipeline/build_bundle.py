"""From a BuildJob to a bundle in its place: one named step after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundler import console
from bundler.engines.container_engine import Engine
from bundler.errors import EngineUnavailableError, VerificationFailedError
from bundler.images.device_image import DeviceImage
from bundler.images.image_tags import name_image
from bundler.manifest import Evidence, LedgerRecord, Manifest
from bundler.packaging.archive import write_archive
from bundler.packaging.documents import write_papers
from bundler.packaging.placing import place, workshop
from bundler.packaging.staging import StagedBundle, stage
from bundler.pipeline.description import describe, quantization_record
from bundler.pipeline.fleet import may_be_exact, prove_in_the_fleet
from bundler.pipeline.inputs import gather
from bundler.pipeline.modes import BuiltModes, build_modes
from bundler.pipeline.proof import default_reference, engine_or_reason, image_for, image_of, image_record, prove
from bundler.pipeline.quantizing import checkpoint_of
from bundler.plan import BuildJob
from bundler.verification.layer_comparison import host_place, image_place, make_ledger, save_torch_trace

__all__ = ["Bundle", "build_bundle"]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A finished bundle in its place."""

    directory: Path
    archive: Path
    manifest: Manifest


def build_bundle(job: BuildJob) -> Bundle:
    """Build, prove and place one bundle.

    Nothing changes in the bundle's place before all is done. A bundle that failed on a CPU is put beside it, as
    `MODEL.failed`, and an earlier good one stays.

    Raises:
        BundlerError: one of its subclasses, for whatever cannot be done.
        VerificationFailedError: a mode gave wrong results on a CPU.
    """
    console.heading(f"{job.variant.name} for {job.target.name}: {', '.join(job.modes)}")
    with workshop(job.directory) as folder, engine_or_reason() as engine:
        bundle = folder / job.variant.name
        (bundle / "models").mkdir(parents=True)
        material = gather(job)
        built = build_modes(job, material, bundle)
        staged = stage(
            bundle,
            identifier=job.identifier,
            target=job.target,
            task=job.variant.task,
            inputs=material.golden,
            reference=built.reference,
            modes=built.modes,
        )
        with image_for(
            job.target,
            identifier=job.identifier,
            bundle=bundle,
            files=staged.files,
            base_image=job.base_image,
            engine=engine,
            workspace=folder,
        ) as image:
            pictures = sum(staged.samples.values())
            evidence = prove(job.target, tuple(built.modes), bundle=bundle, image=image, engine=engine, pictures=pictures)
            records = {str(mode): quantization_record(job, material, built, mode) for mode in built.modes}
            fleet = prove_in_the_fleet(
                job.target,
                may_be_exact(records, evidence),
                bundle=bundle,
                files=staged.files,
                samples={str(mode): count for mode, count in staged.samples.items()},
                engine=engine,
                workspace=folder,
            )
            ledgers = _ledgers(job, built, staged, bundle=bundle, image=image, engine=engine, workspace=folder)
            reference = default_reference(job.variant.name, job.target, image)
            if job.tag is not None and (image is None or _any_passed(evidence)):
                reference = job.tag
            elif job.tag is not None:
                console.warn(f"nothing was executed here, so the image is not tagged {job.tag} but {reference}")
            manifest = describe(job, material, built, evidence, fleet, ledgers, image_record(image, reference), engine)
            console.step("Writing the package")
            write_papers(bundle, manifest, job.target, image_reference=reference)
            if manifest.verdict == "failed":
                raise _set_aside(job, bundle, manifest)
            archive = folder / job.archive.name
            write_archive(bundle, archive, root=job.identifier)
            replaced = image_of(job.directory)
            place(bundle, job.directory, archive=archive, archive_path=job.archive)
            if image is not None and isinstance(engine, Engine):
                name_image(engine, image, reference, bundle=job.directory, replaced=replaced)
        if "int8-qat" in built.modes:  # not before: what was learned outlives whatever failed after it
            checkpoint_of(job, material).unlink(missing_ok=True)
    return Bundle(directory=job.directory, archive=job.archive, manifest=manifest)


def _any_passed(evidence: Mapping[str, Sequence[Evidence]]) -> bool:
    return any(item.verdict == "passed" for items in evidence.values() for item in items)


def _ledgers(
    job: BuildJob,
    built: BuiltModes,
    staged: StagedBundle,
    *,
    bundle: Path,
    image: DeviceImage | None,
    engine: Engine | EngineUnavailableError,
    workspace: Path,
) -> Mapping[str, LedgerRecord]:
    """Write torch's integers beside what goes into the image, and compare them with ONNX Runtime's."""
    places = [place for place in (host_place(bundle, job.target), image_place(job.target, image, engine)) if place]
    level = job.target.runtime.graph_optimization_level
    ledgers: dict[str, LedgerRecord] = {}
    for mode, one in built.modes.items():
        if one.quantized is not None:
            save_torch_trace(bundle, mode, one.quantized.torch)
            samples = staged.samples[mode]
            ledgers[mode] = make_ledger(bundle, mode, level=level, samples=samples, places=places, workspace=workspace)
    return ledgers


def _set_aside(job: BuildJob, bundle: Path, manifest: Manifest) -> VerificationFailedError:
    aside = job.directory.with_name(f"{job.directory.name}.failed")
    place(bundle, aside)
    reasons = "; ".join(f"{mode.name} {mode.reason}" for mode in manifest.modes if not mode.supported)
    return VerificationFailedError(
        f"{job.identifier} is not fit for its target: {reasons}",
        next_step=f"`bundler inspect {aside}` shows the figures; {job.directory} was not touched.",
    )
