"""From a BuildJob to an installed bundle: one named step after another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bundler import console
from bundler.engines.engine_availability import available_engine
from bundler.errors import BundleDamagedError, VerificationFailedError
from bundler.files.sha256 import sha256_of
from bundler.images.image_tags import TaggedImage
from bundler.manifest import Manifest, read_manifest
from bundler.packaging.installation import staging_directory
from bundler.packaging.staging import stage
from bundler.pipeline.inputs import Inputs, load_inputs
from bundler.pipeline.manifest_assembly import assemble_manifest, quantization_record
from bundler.pipeline.modes import BuiltModes, build_modes
from bundler.pipeline.verified_installation import Installation, default_reference, image_record, verify_and_install
from bundler.plan import BuildJob
from bundler.verification.layer_comparison import save_torch_trace
from bundler.verification.session import BundleUnderTest, VerificationRequest, VerificationResult, VerificationSession

__all__ = ["Bundle", "build_bundle"]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An installed bundle."""

    directory: Path
    archive: Path
    manifest: Manifest


def build_bundle(job: BuildJob) -> Bundle:
    """Build, verify and install one bundle.

    Nothing is installed before every step is done. A bundle that failed on a CPU is installed as `MODEL.failed`, and an earlier
    bundle stays.

    Raises:
        BundlerError: a step failed.
        VerificationFailedError: a mode gave wrong results on a CPU.
    """
    console.heading(f"{job.variant.name} for {job.target.name}: {', '.join(job.modes)}")
    with staging_directory(job.directory) as workspace, available_engine() as engine:
        bundle = workspace / job.variant.name
        (bundle / "models").mkdir(parents=True)
        inputs = load_inputs(job)
        built = build_modes(job, inputs, bundle=bundle, workspace=workspace)
        session = VerificationSession(
            engine=engine,
            workspace=workspace,
            target=job.target,
            bundle=_stage(job, inputs, built, bundle),
            base_image=job.image.base,
        )
        records = {mode: quantization_record(job, one) for mode, one in built.modes.items()}

        def describe(result: VerificationResult) -> Installation:
            reference = _reference(job, result)
            image = image_record(result.image, reference, base_image=job.image.base)
            return _installation(job, assemble_manifest(job, inputs, built, records, result, image), reference)

        request = VerificationRequest(modes=records, compare="own image")
        _, installation = verify_and_install(session, request, describe)
        if installation.manifest.verdict == "failed":
            raise _failed(job, installation.manifest)
        _remove_checkpoint(inputs)
    return Bundle(directory=job.directory, archive=job.archive, manifest=installation.manifest)


def _stage(job: BuildJob, inputs: Inputs, built: BuiltModes, bundle: Path) -> BundleUnderTest:
    """Write what the device executes beside the graphs, and torch's integers, which do not go into the device image."""
    stage(
        bundle,
        identifier=job.identifier,
        target=job.target,
        task=job.variant.task,
        inputs=inputs.golden,
        reference=built.reference,
        modes=built.modes,
    )
    for mode, one in built.modes.items():
        if one.quantized is not None:
            save_torch_trace(bundle, mode, one.quantized.torch)
    return BundleUnderTest.read(bundle)


def _reference(job: BuildJob, result: VerificationResult) -> str:
    """Return the name of the device image: the one given with --tag, unless the image exists and passed nowhere."""
    default = default_reference(job.variant.name, job.target, result.image)
    if job.image.tag is None:
        return default
    if result.image is None or result.any_passed:
        return job.image.tag
    console.warn(f"the device image passed on no CPU of this machine, so it is named {default}, not {job.image.tag}")
    return default


def _installation(job: BuildJob, manifest: Manifest, reference: str) -> Installation:
    if manifest.verdict == "failed":
        return Installation(manifest=manifest, reference=reference, directory=_aside(job), archive=None, named_for=None)
    return Installation(
        manifest=manifest,
        reference=reference,
        directory=job.directory,
        archive=job.archive,
        named_for=job.directory,
        replaced=_image_of(job.directory),
    )


def _image_of(directory: Path) -> TaggedImage | None:
    """Return the device image of the bundle in a folder; None if there is no bundle, or it has none."""
    try:
        image = read_manifest(directory).image
        bundle_sha256 = sha256_of(directory / "runner.json")
    except (BundleDamagedError, OSError):
        return None
    if image is None:
        return None
    return TaggedImage(reference=image.reference, digest=image.digest, bundle_sha256=bundle_sha256)


def _aside(job: BuildJob) -> Path:
    return job.directory.with_name(f"{job.directory.name}.failed")


def _failed(job: BuildJob, manifest: Manifest) -> VerificationFailedError:
    reasons = "; ".join(f"{mode.name} {mode.reason}" for mode in manifest.modes if not mode.supported)
    return VerificationFailedError(
        f"verification of {job.identifier} failed: {reasons}",
        next_step=f"`bundler inspect {_aside(job)}` shows the figures; {job.directory} was not changed.",
    )


def _remove_checkpoint(inputs: Inputs) -> None:
    """Remove the checkpoint of a training, which is kept until here in case a later step fails."""
    if inputs.labelled is not None and inputs.labelled.training is not None:
        inputs.labelled.training.checkpoint.unlink(missing_ok=True)
