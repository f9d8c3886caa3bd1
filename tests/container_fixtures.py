"""Fixtures of the tests of engines and images: no engine, no network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bundler.architecture import Architecture
from bundler.engines.container_engine import Engine
from bundler.targets import TargetProfile, find_target
from docker import DockerClient


@pytest.fixture
def arm64() -> TargetProfile:
    return find_target("arm64")


@pytest.fixture
def amd64() -> TargetProfile:
    return find_target("x86")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edge-bundler"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Write shell scripts into a folder that is the only one of PATH beside the system's shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("sh", "cp", "touch", "cat"):
        found = next(Path(place, tool) for place in os.environ["PATH"].split(":") if Path(place, tool).exists())
        (folder / tool).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))

    def write(name: str, script: str) -> Path:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return write


@pytest.fixture
def engine_on() -> Iterator[Callable[..., Engine]]:
    """Make engines that are never spoken to."""
    with closing(DockerClient(base_url="unix:///nowhere/docker.sock", version="1.41")) as client:

        def make(architecture: Architecture, *, shares_kernel: bool = True) -> Engine:
            return Engine(
                client=client,
                ping_client=client,
                name="Docker",
                version="1",
                architecture=architecture,
                shares_kernel=shares_kernel,
            )

        yield make
