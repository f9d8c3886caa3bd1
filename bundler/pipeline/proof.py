"""Proof: the device image is assembled, and the bundle's runner executed on every CPU of the profile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bundler import console
from bundler.containers.engine import Engine, connect
from bundler.containers.image import ImageArchive, assemble_image, load_image
from bundler.errors import EngineUnavailableError, ImageError
from bundler.manifest import Evidence, ImageRecord, WheelRecord
from bundler.targets import TargetProfile
from bundler.verification.evidence import Executor, prove_on_every_cpu
from bundler.verification.executors import ContainerExecutor, HostExecutor

__all__ = ["engine_or_reason", "image_for", "prove"]


@contextmanager
def engine_or_reason() -> Iterator[Engine | EngineUnavailableError]:
    """Give the container engine, or the reason why there is none."""
    with ExitStack() as stack:
        try:
            engine: Engine | EngineUnavailableError = stack.enter_context(connect())
        except EngineUnavailableError as error:
            engine = error
        yield engine


def image_for(
    target: TargetProfile,
    *,
    identifier: str,
    bundle: Path,
    files: Sequence[str],
    reference: str,
    base_image: str | None,
    engine: Engine | EngineUnavailableError,
    workspace: Path,
) -> ImageRecord | None:
    """Assemble the device image from the bundle's files and load it into the engine; None without an engine.

    Raises:
        ImageError: the base image or the wheels cannot be had.
        EngineError: the engine refused the image.
    """
    if isinstance(engine, EngineUnavailableError):
        return None
    console.step(f"Assembling the device image {reference} for {target.platform}")
    archive: ImageArchive = assemble_image(
        target,
        bundle=bundle,
        files=files,
        reference=reference,
        labels={"org.opencontainers.image.title": identifier},
        base_image=base_image,
        engine=engine,
        workspace=workspace,
    )
    load_image(engine, archive)
    console.detail(f"{archive.size_bytes / 1e6:.0f} MB unpacked, {archive.digest}")
    return ImageRecord(
        reference=reference,
        digest=archive.digest,
        size=archive.size_bytes,
        base=base_image or f"debian:{target.image.suite}",
        wheels=tuple(WheelRecord(name=wheel.file, sha256=wheel.sha256) for wheel in archive.wheels),
    )


def prove(
    target: TargetProfile,
    modes: Sequence[str],
    *,
    bundle: Path,
    image: ImageRecord | None,
    engine: Engine | EngineUnavailableError,
    pictures: int,
) -> Mapping[str, tuple[Evidence, ...]]:
    """Return each mode's evidence, one record for each CPU of the profile.

    In the device image where there is an engine; otherwise as a process of this host, which only a host of the target's
    architecture can. What cannot run is recorded as `not_run`, with the reason.

    Raises:
        BundleDamagedError: a file of the bundle changed under it.
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
        executor = ContainerExecutor(engine=engine, reference=image.reference, target=target)
    evidence: dict[str, list[Evidence]] = {mode: [] for mode in modes}
    for of_one_cpu in prove_on_every_cpu(executor, target, modes, pictures=pictures):
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
