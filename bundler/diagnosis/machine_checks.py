"""Checks of this machine for `bundler doctor`: versions, engine, CPUs, base image tool, disk, and leftovers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from bundler.diagnosis.abandoned_files import Leftover, clean, find_leftovers
from bundler.engines.container_engine import Engine
from bundler.engines.emulation import NotRunnable, decide_launch
from bundler.engines.engine_availability import NoEngine, available_engine
from bundler.errors import BundlerError
from bundler.resources import cache_directory
from bundler.targets import TargetProfile, load_targets

__all__ = ["Finding", "clean_up", "diagnose"]

_BY_HAND = "Its process may be alive, on another machine or in a container: `docker rm --force`, or `docker rmi`, if it is not."
_ROOM = 5  # GB: a base image, the wheels of both targets, and a few device images
_PACKAGES = ("edge-bundler", "torch", "torchvision", "onnx", "onnxruntime", "docker")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check."""

    subject: str
    status: Literal["ok", "missing", "left over", "removed", "not removed"]
    detail: str
    next_step: str = ""


def diagnose(output: Path) -> tuple[Finding, ...]:
    """Check versions, engine, each CPU of each target, the base image's tool and the disk; list leftovers."""
    with available_engine() as engine:
        return (
            Finding(subject="versions", status="ok", detail=", ".join(f"{name} {version(name)}" for name in _PACKAGES)),
            _engine(engine),
            *(finding for target in load_targets() for finding in _target(engine, target)),
            _base_image_tool(),
            _disk(),
            *_leftovers(engine, output, remove=False),
        )


def clean_up(output: Path) -> tuple[Finding, ...]:
    """Remove leftovers of killed commands in `output`, the cache and the engine; what running commands use stays."""
    with available_engine() as engine:
        findings = _leftovers(engine, output, remove=True)
        unasked = () if isinstance(engine, Engine) else (_engine(engine),)
    return (*unasked, *findings)


def _leftovers(engine: Engine | NoEngine, output: Path, *, remove: bool) -> tuple[Finding, ...]:
    try:
        found = find_leftovers(engine, output)
    except BundlerError as error:
        return (Finding(subject="leftovers", status="missing", detail=error.message, next_step=error.next_step),)
    if not found:
        return (Finding(subject="leftovers", status="ok", detail=f"none in {output}, the cache and the engine"),)
    if remove:
        return tuple(
            Finding(
                subject=item.leftover.name,
                status="not removed" if item.problem else "removed",
                detail=item.leftover.detail,
                next_step=item.problem,
            )
            for item in clean(tuple(item for item in found if item.remove))
        ) + tuple(_left(item, _BY_HAND) for item in found if not item.remove)
    return tuple(_left(item, f"`bundler doctor --clean --output {output}`" if item.remove else _BY_HAND) for item in found)


def _left(item: Leftover, next_step: str) -> Finding:
    return Finding(subject=item.name, status="left over", detail=item.detail, next_step=next_step)


def _engine(engine: Engine | NoEngine) -> Finding:
    if isinstance(engine, Engine):
        detail = f"{engine.name} {engine.version} on {engine.architecture.platform}"
        return Finding(subject="container engine", status="ok", detail=detail)
    return Finding(subject="container engine", status="missing", detail=engine.reason, next_step=engine.next_step)


def _target(engine: Engine | NoEngine, target: TargetProfile) -> Iterator[Finding]:
    wanted = target.quantization.engine
    have = wanted in torch.backends.quantized.supported_engines
    yield Finding(
        subject=f"{target.name}: torch engine",
        status="ok" if have else "missing",
        detail=wanted,
        next_step="" if have else "Build on an x86-64 or arm64 Linux machine with the torch of constraints.txt.",
    )
    for cpu in target.verification.cpus:
        launch = decide_launch(engine if isinstance(engine, Engine) else None, target, cpu)
        subject = f"{target.name}: {cpu.name}"
        if isinstance(launch, NotRunnable):
            yield Finding(subject=subject, status="missing", detail=launch.reason, next_step=launch.next_step)
        else:
            yield Finding(subject=subject, status="ok", detail=launch.runner)


def _base_image_tool() -> Finding:
    program = shutil.which("mmdebstrap")
    if program:
        return Finding(subject="base image", status="ok", detail=program)
    return Finding(
        subject="base image",
        status="missing",
        detail="mmdebstrap is not installed",
        next_step="`apt-get install mmdebstrap`, or build with --base-image IMAGE.",
    )


def _disk() -> Finding:
    try:
        folder = cache_directory()
    except BundlerError as error:
        return Finding(subject="disk", status="missing", detail=error.message, next_step=error.next_step)
    free = shutil.disk_usage(folder).free / 1e9
    enough = free >= _ROOM
    return Finding(
        subject="disk",
        status="ok" if enough else "missing",
        detail=f"{free:.0f} GB free at {folder}",
        next_step="" if enough else f"Free some space: {_ROOM} GB are recommended. XDG_CACHE_HOME moves the cache.",
    )
