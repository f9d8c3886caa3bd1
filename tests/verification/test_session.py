"""A session without a container engine: what it executes on this host, compares, and withholds."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from bundler.device.runner_json import PROGRAM
from bundler.engines.engine_availability import NoEngine
from bundler.errors import BundleDamagedError
from bundler.manifest import read_manifest
from bundler.targets import CpuProfile, TargetProfile, find_target
from bundler.verification.executors import HostExecutor
from bundler.verification.session import BundleUnderTest, VerificationRequest, VerificationResult, VerificationSession

NATIVE = CpuProfile(name="native", present=(), absent=())


@pytest.fixture
def target() -> TargetProfile:
    """The x86 profile with this CPU alone, and no other target."""
    profile = find_target("x86")
    verification = profile.verification.model_copy(update={"cpus": (NATIVE,), "also_verify_on": ()})
    return profile.model_copy(update={"verification": verification})


@pytest.fixture
def session(built: dict[str, Path], target: TargetProfile, tmp_path: Path) -> VerificationSession:
    bundle = Path(shutil.copytree(built["x86"], tmp_path / "resnet18"))
    none = NoEngine(reason="no container engine answers", next_step="start one")
    return VerificationSession(
        engine=none, workspace=tmp_path, target=target, bundle=BundleUnderTest.read(bundle), base_image=None
    )


def request_of(session: VerificationSession, *, compare: bool = False) -> VerificationRequest:
    modes = read_manifest(session.bundle.directory).modes
    return VerificationRequest(
        modes={mode.name: mode.quantization for mode in modes}, compare="own image" if compare else "nothing"
    )


def verified(session: VerificationSession, request: VerificationRequest) -> VerificationResult:
    with session.device() as executor:
        assert isinstance(executor, HostExecutor)
        return session.verify(executor, request)


def test_the_bundle_is_executed_on_this_host_and_gives_what_was_recorded(session: VerificationSession) -> None:
    result = verified(session, request_of(session, compare=True))
    recorded = {mode.name: mode for mode in read_manifest(session.bundle.directory).modes}
    assert (result.image, result.verdict, result.any_passed) == (None, "passed", True)
    for mode, (evidence,) in result.evidence.items():
        assert (evidence.cpu, evidence.place) == ("native", "host")
        assert evidence.outputs_sha256 == recorded[mode].evidence[0].outputs_sha256
    assert result.layer_comparisons == {"int8-ptq": recorded["int8-ptq"].ledger}
    assert result.other_targets == {"int8-ptq": ()}  # fp32 cannot be bit-exact, and the profile names no other target


def test_a_device_program_of_another_origin_is_not_executed_on_this_host(session: VerificationSession) -> None:
    program = session.bundle.directory / PROGRAM
    with zipfile.ZipFile(program) as archive:
        sources = {name: archive.read(name) for name in archive.namelist()}
    mark = f"open({str(session.workspace / 'executed')!r}, 'w').close()\n"
    sources["__main__.py"] = mark.encode() + sources["__main__.py"]
    with zipfile.ZipFile(program, "w") as archive:
        for name, source in sources.items():
            archive.writestr(name, source)
    result = verified(session, request_of(session))
    assert not (session.workspace / "executed").exists()
    assert result.verdict == "not_run"
    assert {"--trust-bundle" in item.reason for items in result.evidence.values() for item in items} == {True}
    assert result.other_targets == {}
    with pytest.raises(BundleDamagedError, match=r"device\.pyz"):  # it is executed, and finds itself changed
        verified(replace(session, trust_program=True), request_of(session))
    assert (session.workspace / "executed").exists()


def test_the_files_of_the_device_image_are_those_with_checksums(session: VerificationSession) -> None:
    assert "runner.json" in session.bundle.files
    assert not [name for name in session.bundle.files if name.startswith("ledger/")]
    assert set(session.bundle.samples) == {"fp32", "int8-ptq"}
