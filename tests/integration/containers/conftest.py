"""Device images whose program executes the Python text of a test, one per architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from bundler.engines.container import ContainerRequest, RunResult, run_container
from bundler.engines.container_engine import Engine
from bundler.engines.emulation import Launch, decide_launch
from bundler.images.device_image import (
    DeviceImage,
    ImageArchive,
    ImageRequest,
    assemble_image,
    loaded_image,
    tag_image,
    untag_image,
)
from bundler.targets import CpuProfile, TargetProfile

# `selftest` executes the Python text that follows it: tests say in place what happens in the container.
RUNNER = "import sys\nexec(sys.argv[2])\n"
FILES = ("device.pyz", "models/double.onnx")

Run = Callable[..., RunResult]


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "device.pyz").write_text(RUNNER)
    (folder / "models").mkdir()
    double = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
    )
    model = helper.make_model(double, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(folder / "models" / "double.onnx"))
    return folder


def assemble(profile: TargetProfile, bundle: Path, workspace: Path) -> ImageArchive:
    return assemble_image(
        profile,
        ImageRequest(
            bundle=bundle,
            files=FILES,
            reference=f"edge-bundler-test:{profile.name}",
            labels={"org.opencontainers.image.title": "a test"},
        ),
        engine=None,
        workspace=workspace,
    )


@pytest.fixture(scope="session")
def arm64_archive(arm64: TargetProfile, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> ImageArchive:
    return assemble(arm64, bundle, tmp_path_factory.mktemp("arm64"))


@pytest.fixture(scope="session")
def amd64_archive(amd64: TargetProfile, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> ImageArchive:
    return assemble(amd64, bundle, tmp_path_factory.mktemp("amd64"))


@pytest.fixture(scope="session")
def arm64_image(arm64_engine: Engine, arm64_archive: ImageArchive) -> Iterator[DeviceImage]:
    with loaded_image(arm64_engine, arm64_archive) as image, _kept(arm64_engine, image):
        yield image


@pytest.fixture(scope="session")
def amd64_image(engine: Engine, amd64_archive: ImageArchive) -> Iterator[DeviceImage]:
    with loaded_image(engine, amd64_archive) as image, _kept(engine, image):
        yield image


@contextmanager
def _kept(engine: Engine, image: DeviceImage) -> Iterator[None]:
    """Give a shared image a second tag, so that it stays when a test loads and removes the same archive."""
    reference = f"edge-bundler-test:kept-{image.architecture.value}"
    tag_image(engine, image, reference)
    try:
        yield
    finally:
        untag_image(engine, reference)


@pytest.fixture
def native_run(engine: Engine, amd64_image: DeviceImage) -> Run:
    """Run Python text in a container of this machine's own architecture."""
    return _runner(engine, amd64_image, Launch(runner="native"))


@pytest.fixture
def arm64_run(arm64_engine: Engine, arm64_image: DeviceImage, arm64: TargetProfile) -> Run:
    """Run Python text in an arm64 container that emulates a Cortex-A53."""
    launch = decide_launch(arm64_engine, arm64, CpuProfile(name="cortex-a53", present=(), absent=()))
    assert isinstance(launch, Launch), launch
    return _runner(arm64_engine, arm64_image, launch)


def _runner(engine: Engine, image: DeviceImage, launch: Launch) -> Run:
    def run(
        text: str,
        *,
        timeout_seconds: float = 120,
        memory_mib: int = 1024,
        token: str = "",
        on_stderr_line: Callable[[str], None] = lambda _line: None,
    ) -> RunResult:
        return run_container(
            engine,
            ContainerRequest(
                image=image.id,
                command=["selftest", text],
                launch=launch,
                timeout_seconds=timeout_seconds,
                memory_mib=memory_mib,
                labels={"edge-bundler-test": token},
            ),
            on_stderr_line=on_stderr_line,
        )

    return run
