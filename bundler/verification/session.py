"""VerificationSession: the device program of one bundle, executed on the CPUs of its target and of the other targets.

The device image is assembled from the bundle's files, the device program is executed in it on every CPU of the target's
profile, then in images for the other targets, and the INT8 graphs are compared with torch layer by layer. Without a container
engine the device program is executed as a process of this host.
"""

from __future__ import annotations

import platform
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bundler import console
from bundler.device.runner_json import PROGRAM, RunnerDocument
from bundler.engines.container_engine import Engine
from bundler.engines.emulation import Launch
from bundler.engines.engine_availability import NoEngine
from bundler.engines.owner import temporary_reference
from bundler.errors import ImageError
from bundler.files.sha256 import sha256_of
from bundler.images.device_image import BUNDLE_LABEL, DeviceImage, ImageRequest, assemble_image, loaded_image
from bundler.manifest import (
    CrossTargetRecord,
    Evidence,
    LayerComparisonRecord,
    QuantizationRecord,
    Verdict,
    exactness_obstacles,
    overall_verdict,
)
from bundler.models.specs import Mode
from bundler.packaging.device_program import device_program_sha256
from bundler.packaging.runner_document import read_runner_document
from bundler.targets import TargetProfile, find_target
from bundler.verification.evidence import Expected, verify_on_every_cpu
from bundler.verification.executors import ContainerExecutor, HostExecutor
from bundler.verification.layer_comparison import Place, compare_layers

__all__ = ["BundleUnderTest", "DeviceExecutor", "VerificationRequest", "VerificationResult", "VerificationSession"]

DeviceExecutor = ContainerExecutor | HostExecutor
OfEachMode = Mapping[Mode, tuple[Evidence, ...]]


@dataclass(frozen=True, kw_only=True)
class BundleUnderTest:
    """The files of a bundle in a folder that no other command changes, and its runner.json."""

    directory: Path
    document: RunnerDocument

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files that go into the device image, sorted."""
        return tuple(sorted([*self.document.files, "runner.json"]))

    @property
    def samples(self) -> Mapping[Mode, int]:
        """How many golden inputs the selftest runs of each mode."""
        return {mode.name: mode.samples for mode in self.document.modes}

    @classmethod
    def read(cls, directory: Path) -> BundleUnderTest:
        """Read runner.json of a folder.

        Raises:
            BundleDamagedError: it does not follow the schema.
        """
        path = directory / "runner.json"
        return cls(directory=directory, document=read_runner_document(path.read_bytes(), path))


@dataclass(frozen=True, kw_only=True)
class VerificationRequest:
    """What to verify.

    Args:
        modes: in the order in which they are executed; an INT8 mode with its record, which decides whether it can be bit-exact.
        compare: with which ONNX Runtime torch's INT8 is compared layer by layer: that of this host and, if an engine can run
            it, of the target's own device image, or of the first one for another architecture than this host's.
        recorded_digest: of the device image in which earlier evidence was collected; None if there is none.
    """

    modes: Mapping[Mode, QuantizationRecord | None]
    compare: Literal["nothing", "own image", "other architecture"]
    recorded_digest: str | None = None


@dataclass(frozen=True, kw_only=True)
class VerificationResult:
    """Evidence of each mode on the target's CPUs and on those of other targets, and its layer-wise comparison.

    `image` is the device image in which the evidence was collected; None without an engine.
    """

    engine: Engine | NoEngine
    image: DeviceImage | None
    evidence: OfEachMode
    other_targets: Mapping[Mode, tuple[CrossTargetRecord, ...]]
    layer_comparisons: Mapping[Mode, LayerComparisonRecord]

    @property
    def verdict(self) -> Verdict:
        """Of the target's own CPUs."""
        return overall_verdict(item for items in self.evidence.values() for item in items)

    @property
    def any_passed(self) -> bool:
        return any(item.verdict == "passed" for items in self.evidence.values() for item in items)


@dataclass(frozen=True, kw_only=True)
class VerificationSession:
    """One engine, one workspace and one bundle, to be verified for one target.

    Args:
        engine: in which device images are executed, or why there is none.
        workspace: folder for temporary files, on a disk with space for device images.
        target: that the bundle was built for.
        bundle: whose device program is executed.
        base_image: reference of the image that the device image is based on; None for Debian's packages.
        trust_program: execute the device program on this host even if this version of bundler did not write it.
    """

    engine: Engine | NoEngine
    workspace: Path
    target: TargetProfile
    bundle: BundleUnderTest
    base_image: str | None
    trust_program: bool = False

    @contextmanager
    def device(self) -> Iterator[DeviceExecutor]:
        """Assemble the device image of the bundle's target and load it into the engine; without an engine, give this host.

        The image has a temporary name while the block runs, and is removed at the end unless it was given another one.

        Raises:
            ImageError: the base image or the wheels are not available.
            EngineError: the engine refused the image.
        """
        with self._assembled(self.target, self.bundle.document.bundle, self.base_image) as executor:
            yield executor

    def verify(self, executor: DeviceExecutor, request: VerificationRequest) -> VerificationResult:
        """Execute the device program for the target, then for other targets, and compare layers.

        What cannot be executed is recorded as `not_run`, with the reason.

        Raises:
            BundleDamagedError: a file of the bundle changed.
            OtherFilesExecutedError: other files than those of the bundle were executed.
            UnknownTargetError: the profile names another target that does not exist.
            EngineError: the engine failed.
        """
        image = executor.image if isinstance(executor, ContainerExecutor) else None
        if image is not None and request.recorded_digest not in (None, image.digest):
            console.warn(
                f"the device image is {image.digest}, and {request.recorded_digest} is recorded: the packages of the base "
                "image have changed since"
            )
        withheld = self._reason_to_withhold()
        if withheld:
            console.warn(f"not executed: {withheld}")
            evidence: OfEachMode = dict.fromkeys(request.modes, _not_run(self.target, withheld))
        else:
            evidence = self._execute(executor, tuple(request.modes))
        exact = () if withheld else _candidates_for_exactness(request.modes, evidence)
        return VerificationResult(
            engine=self.engine,
            image=image,
            evidence=evidence,
            other_targets=self._across_targets(exact),
            layer_comparisons=self._compare_layers(executor, request),
        )

    @contextmanager
    def _assembled(self, target: TargetProfile, identifier: str, base_image: str | None) -> Iterator[DeviceExecutor]:
        directory = self.bundle.directory
        if isinstance(self.engine, NoEngine):
            yield HostExecutor(bundle=directory, target=target)
            return
        console.step(f"Assembling the device image of {identifier} for {target.platform}")
        request = ImageRequest(
            bundle=directory,
            files=self.bundle.files,
            reference=temporary_reference(f"{target.name}-{uuid.uuid4().hex[:12]}"),
            labels={"org.opencontainers.image.title": identifier, BUNDLE_LABEL: sha256_of(directory / "runner.json")},
            base_image=base_image,
        )
        archive = assemble_image(target, request, engine=self.engine, workspace=self.workspace)
        with loaded_image(self.engine, archive) as image:
            console.detail(f"{image.size_bytes / 1e6:.0f} MB unpacked, {image.digest}")
            yield ContainerExecutor(engine=self.engine, image=image, target=target)

    def _other(self, target: TargetProfile) -> str:
        """Return the name of the bundle's image for another target."""
        return f"{self.bundle.document.bundle}-{target.name}"

    def _reason_to_withhold(self) -> str:
        """Return why the bundle's device program may not be executed; empty if it may.

        In a container any may; on this host only the one of this version of bundler, or with `trust_program`.
        """
        if sha256_of(self.bundle.directory / PROGRAM) == device_program_sha256():
            return ""
        console.warn("the device program was not written by this version of bundler: the evidence is what that program states")
        if self.trust_program or isinstance(self.engine, Engine):
            return ""
        return (
            "no container engine answers, and the bundle's device program was not written by this version of bundler; "
            "--trust-bundle executes it on this host"
        )

    def _execute(self, executor: DeviceExecutor, modes: Sequence[Mode]) -> OfEachMode:
        """Return the evidence of each mode, one record for each CPU of the executor's target."""
        target, directory = executor.target, self.bundle.directory
        if isinstance(self.engine, NoEngine):
            console.warn(self.engine.reason)
            console.step("Verifying without a container engine")
        else:
            console.step(f"Verifying in the device image on {', '.join(cpu.name for cpu in target.verification.cpus)}")
        expected = Expected(
            bundle_sha256=sha256_of(directory / "runner.json"),
            models={mode: sha256_of(directory / f"models/{mode}.onnx") for mode in modes},
        )
        images = sum(self.bundle.samples[mode] for mode in modes)
        evidence: dict[Mode, list[Evidence]] = {mode: [] for mode in modes}
        for of_one_cpu in verify_on_every_cpu(executor, target, expected, pictures=images):
            for mode in modes:
                evidence[mode].append(of_one_cpu[mode])
                _report(mode, of_one_cpu[mode])
        return {mode: tuple(items) for mode, items in evidence.items()}

    def _across_targets(self, modes: Sequence[Mode]) -> Mapping[Mode, tuple[CrossTargetRecord, ...]]:
        """Return the evidence of each mode on the CPUs of every other target that the profile names, in images for those."""
        records: dict[Mode, list[CrossTargetRecord]] = {mode: [] for mode in modes}
        for other in (find_target(name) for name in self.target.verification.also_verify_on) if modes else ():
            console.step(f"Comparing the outputs with those on the CPUs of {other.name}")
            try:
                with self._assembled(other, self._other(other), None) as executor:
                    evidence = self._execute(executor, modes)
            except ImageError as error:
                console.warn(error.message)
                evidence = dict.fromkeys(modes, _not_run(other, error.message))
            for mode in modes:
                records[mode].append(CrossTargetRecord(target=other.name, evidence=evidence[mode]))
        return {mode: tuple(items) for mode, items in records.items()}

    def _compare_layers(self, executor: DeviceExecutor, request: VerificationRequest) -> Mapping[Mode, LayerComparisonRecord]:
        modes = [mode for mode, record in request.modes.items() if record is not None]
        if request.compare == "nothing" or not modes:
            return {}
        with self._compared(executor, request) as compared:
            here = HostExecutor(bundle=self.bundle.directory, target=self.target)
            host = Place(name=f"ONNX Runtime, {platform.machine()}", executor=here, launch=Launch(runner="native"))
            image = _image_place(compared)
            places = [host] if image is None else [host, image]
            return {mode: self._compare(mode, places) for mode in modes}

    def _compare(self, mode: Mode, places: Sequence[Place]) -> LayerComparisonRecord:
        level, samples = self.bundle.document.graph_optimization_level, self.bundle.samples[mode]
        directory, workspace = self.bundle.directory, self.workspace
        return compare_layers(directory, mode, level=level, samples=samples, places=places, workspace=workspace)

    @contextmanager
    def _compared(self, executor: DeviceExecutor, request: VerificationRequest) -> Iterator[DeviceExecutor]:
        """Give the executor with which this host is compared; an image that is assembled for that is removed afterwards."""
        foreign = None
        if request.compare == "other architecture" and not _is_foreign(self.target):
            others = (find_target(name) for name in self.target.verification.also_verify_on)
            foreign = next(filter(_is_foreign, others), None)
        if foreign is None:
            yield executor
            return
        with self._assembled(foreign, self._other(foreign), None) as its_executor:
            yield its_executor


def _is_foreign(target: TargetProfile) -> bool:
    return target.architecture.machine != platform.machine()


def _image_place(executor: DeviceExecutor) -> Place | None:
    """Return the device image on the first CPU of its target; None without an engine, or if this host has its architecture."""
    target = executor.target
    if isinstance(executor, HostExecutor) or not _is_foreign(target):
        return None
    cpu = target.verification.cpus[0]
    launch = executor.launch(cpu)
    if not isinstance(launch, Launch):
        console.warn(f"layers are not compared on {cpu.name}: {launch.reason}")
        return None
    return Place(name=f"ONNX Runtime, {target.architecture.machine} ({cpu.name})", executor=executor, launch=launch)


def _candidates_for_exactness(modes: Mapping[Mode, QuantizationRecord | None], evidence: OfEachMode) -> tuple[Mode, ...]:
    """Return the modes whose graph has no obstacle to bit-exactness, and that failed nowhere."""
    return tuple(
        mode
        for mode, record in modes.items()
        if record is not None and not exactness_obstacles(record) and all(item.verdict != "failed" for item in evidence[mode])
    )


def _not_run(target: TargetProfile, reason: str) -> tuple[Evidence, ...]:
    return tuple(Evidence(cpu=cpu.name, verdict="not_run", reason=reason) for cpu in target.verification.cpus)


def _report(mode: Mode, evidence: Evidence) -> None:
    if evidence.verdict == "passed":
        steps = "" if evidence.max_steps is None else f", maximum error {evidence.max_steps} quantization steps"
        console.success(f"{mode} passed on {evidence.cpu} ({evidence.machine}{steps})")
    elif evidence.verdict == "not_run":
        console.warn(f"{mode} was not run on {evidence.cpu}: {evidence.reason}")
    else:
        console.warn(f"{mode} FAILED on {evidence.cpu}: {evidence.reason}")
