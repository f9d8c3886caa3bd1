"""Verification: the device image is assembled, and the bundle's device program executed in it on every CPU of the profile."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bundler import console
from bundler.engines.container_engine import Engine, connect
from bundler.engines.owner import temporary_reference
from bundler.errors import BundleDamagedError, EngineUnavailableError, ImageError
from bundler.files.sha256 import sha256_of
from bundler.images.device_image import BUNDLE_LABEL, DeviceImage, ImageRequest, assemble_image, loaded_image
from bundler.images.image_tags import TaggedImage
from bundler.manifest import Evidence, ImageRecord, WheelRecord, read_manifest
from bundler.targets import TargetProfile
from bundler.verification.evidence import Executor, Expected, prove_on_every_cpu
from bundler.verification.executors import ContainerExecutor, HostExecutor

__all__ = ["default_reference", "engine_or_reason", "image_for", "image_of", "image_record", "prove"]


@contextmanager
def engine_or_reason() -> Iterator[Engine | EngineUnavailableError]:
    """Give the container engine, or the reason why there is none."""
    with ExitStack() as stack:
        try:
            engine: Engine | EngineUnavailableError = stack.enter_context(connect())
        except EngineUnavailableError as error:
            engine = error
        yield engine


@contextmanager
def image_for(
    target: TargetProfile,
    *,
    identifier: str,
    bundle: Path,
    files: Sequence[str],
    base_image: str | None,
    engine: Engine | EngineUnavailableError,
    workspace: Path,
) -> Iterator[DeviceImage | None]:
    """Assemble the device image from the bundle's files and load it into the engine; None without an engine.

    It has a name of its own as long as the block runs, and is removed at the end unless it was tagged meanwhile.

    Raises:
        ImageError: the base image or the wheels cannot be had.
        EngineError: the engine refused the image.
    """
    if isinstance(engine, EngineUnavailableError):
        yield None
        return
    console.step(f"Assembling the device image of {identifier} for {target.platform}")
    request = ImageRequest(
        bundle=bundle,
        files=files,
        reference=temporary_reference(f"{target.name}-{uuid.uuid4().hex[:12]}"),
        labels={"org.opencontainers.image.title": identifier, BUNDLE_LABEL: sha256_of(bundle / "runner.json")},
        base_image=base_image,
    )
    archive = assemble_image(target, request, engine=engine, workspace=workspace)
    with loaded_image(engine, archive) as image:
        console.detail(f"{image.size_bytes / 1e6:.0f} MB unpacked, {image.digest}")
        yield image


def default_reference(model: str, target: TargetProfile, image: DeviceImage | None) -> str:
    """Return `MODEL:TARGET-DIGEST`, in which twelve digits of the image's digest tell two builds apart.

    Without an image it is `MODEL:TARGET`.
    """
    return f"{model}:{target.name}" + ("" if image is None else f"-{image.digest.removeprefix('sha256:')[:12]}")


def image_record(image: DeviceImage | None, reference: str) -> ImageRecord | None:
    """Return what the manifest states of an image; None without one."""
    if image is None:
        return None
    return ImageRecord(
        reference=reference,
        digest=image.digest,
        size=image.size_bytes,
        base=image.base,
        wheels=tuple(WheelRecord(name=wheel.file, sha256=wheel.sha256) for wheel in image.wheels),
    )


def image_of(directory: Path) -> TaggedImage | None:
    """Return the image that a bundle in that place names; None if there is no bundle, or it names none."""
    try:
        image = read_manifest(directory).image
        bundle_sha256 = sha256_of(directory / "runner.json")
    except (BundleDamagedError, OSError):
        return None
    if image is None:
        return None
    return TaggedImage(reference=image.reference, digest=image.digest, bundle_sha256=bundle_sha256)


def prove(
    target: TargetProfile,
    modes: Sequence[str],
    *,
    bundle: Path,
    image: DeviceImage | None,
    engine: Engine | EngineUnavailableError,
    pictures: int,
) -> Mapping[str, tuple[Evidence, ...]]:
    """Return each mode's evidence, one record for each CPU of the profile.

    In the device image where there is an engine; otherwise as a process of this host, which only a host of the target's
    architecture can. What cannot run is recorded as `not_run`, with the reason.

    Raises:
        BundleDamagedError: a file of the bundle changed under it.
        OtherFilesExecutedError: something else than the files of the bundle was executed.
        EngineError: the engine died half-way.
    """
    if isinstance(engine, EngineUnavailableError):
        console.warn(engine.message)
        console.step("Proving without a container engine")
        executor: Executor = HostExecutor(bundle=bundle, target=target)
    elif image is None:
        raise ImageError("there is no device image to prove", next_step="Build the bundle again.")
    else:
        console.step(f"Proving in the device image on {', '.join(cpu.name for cpu in target.verification.cpus)}")
        executor = ContainerExecutor(engine=engine, image=image, target=target)
    expected = Expected(
        bundle_sha256=sha256_of(bundle / "runner.json"),
        models={mode: sha256_of(bundle / f"models/{mode}.onnx") for mode in modes},
    )
    evidence: dict[str, list[Evidence]] = {mode: [] for mode in modes}
    for of_one_cpu in prove_on_every_cpu(executor, target, expected, pictures=pictures):
        for mode, item in of_one_cpu.items():
            evidence[mode].append(item)
            _report(mode, item)
    return {mode: tuple(items) for mode, items in evidence.items()}


def _report(mode: str, evidence: Evidence) -> None:
    if evidence.verdict == "passed":
        steps = "" if evidence.max_steps is None else f", {evidence.max_steps} steps off"
        console.success(f"{mode} passed on {evidence.cpu} ({evidence.machine}{steps})")
    elif evidence.verdict == "not_run":
        console.warn(f"{mode} was not run on {evidence.cpu}: {evidence.reason}")
    else:
        console.warn(f"{mode} FAILED on {evidence.cpu}: {evidence.reason}")
