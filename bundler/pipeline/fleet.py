"""The fleet: an INT8 file executed on the CPUs of the other targets, to see whether it gives the same bits there."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bundler import console
from bundler.engines.container_engine import Engine
from bundler.errors import EngineUnavailableError, ImageError
from bundler.images.device_image import DeviceImage
from bundler.manifest import Evidence, FleetRecord, QuantizationRecord, exactness_obstacles
from bundler.pipeline.proof import image_for, prove
from bundler.targets import TargetProfile, find_target

__all__ = ["foreign_image", "may_be_exact", "prove_in_the_fleet"]


def may_be_exact(
    records: Mapping[str, QuantizationRecord | None], evidence: Mapping[str, Sequence[Evidence]]
) -> tuple[str, ...]:
    """Return the modes worth looking at elsewhere: nothing in the graph stands against equal bits, and nothing failed yet."""
    return tuple(
        mode
        for mode, record in records.items()
        if record is not None and not exactness_obstacles(record) and all(item.verdict != "failed" for item in evidence[mode])
    )


def prove_in_the_fleet(
    target: TargetProfile,
    modes: Sequence[str],
    *,
    bundle: Path,
    files: Sequence[str],
    samples: Mapping[str, int],
    engine: Engine | EngineUnavailableError,
    workspace: Path,
) -> Mapping[str, tuple[FleetRecord, ...]]:
    """Return each mode's evidence on the CPUs of every other target that the profile names.

    The bundle is for one target; on the others its runner is executed in an image that is made for that and removed.
    `files` go into it, and `samples` is how many golden pictures the selftest runs of each mode.

    Raises:
        UnknownTargetError: the profile names a target that does not exist.
        EngineError: the engine failed half-way. What cannot be run there is recorded as `not_run`, with the reason.
    """
    pictures = sum(samples[mode] for mode in modes)
    records: dict[str, list[FleetRecord]] = {mode: [] for mode in modes}
    for other in (find_target(name) for name in target.verification.also_verify_on) if modes else ():
        console.step(f"Looking for the same bits on the CPUs of {other.name}")
        try:
            with image_for(
                other,
                identifier=f"{bundle.resolve().name}-{other.name}",
                bundle=bundle,
                files=files,
                base_image=None,
                engine=engine,
                workspace=workspace,
            ) as image:
                evidence = dict(prove(other, modes, bundle=bundle, image=image, engine=engine, pictures=pictures))
        except ImageError as error:
            console.warn(error.message)
            evidence = {mode: _not_run(other, error.message) for mode in modes}
        for mode in modes:
            records[mode].append(FleetRecord(target=other.name, evidence=evidence[mode]))
    return {mode: tuple(items) for mode, items in records.items()}


@contextmanager
def foreign_image(
    target: TargetProfile,
    identifier: str,
    bundle: Path,
    files: Sequence[str],
    image: DeviceImage | None,
    engine: Engine | EngineUnavailableError,
    workspace: Path,
) -> Iterator[tuple[TargetProfile, DeviceImage | None]]:
    """Give a target of another architecture than this machine's, with an image of the bundle for it, removed afterwards.

    That is the bundle's own target with its own image, or else the first one of its fleet.

    Raises:
        EngineError: the engine failed, or the image cannot be made.
    """
    others = (find_target(name) for name in target.verification.also_verify_on)
    foreign = (other for other in (target, *others) if other.architecture.machine != platform.machine())
    other = next(foreign, target)
    if other == target:
        yield target, image
        return
    with image_for(
        other,
        identifier=f"{identifier}-{other.name}",
        bundle=bundle,
        files=files,
        base_image=None,
        engine=engine,
        workspace=workspace,
    ) as its_image:
        yield other, its_image


def _not_run(target: TargetProfile, reason: str) -> tuple[Evidence, ...]:
    return tuple(Evidence(cpu=cpu.name, verdict="not_run", reason=reason) for cpu in target.verification.cpus)
