"""The real engine, and a switch that makes its absence a failure: BUNDLER_REQUIRE_ENGINE=1."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import NoReturn

import pytest
from packaging.version import Version

from bundler.architecture import Architecture
from bundler.engines.container_engine import Engine, connect
from bundler.engines.emulation import emulator_problem
from bundler.engines.engine_leftovers import find_engine_leftovers, remove_engine_leftover
from bundler.errors import EngineUnavailableError
from bundler.targets import TargetProfile, find_target


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_of_earlier_sessions() -> None:
    """Remove the images that killed commands left, so that a test sees what it leaves itself."""
    with suppress(EngineUnavailableError), connect() as engine:
        for left in find_engine_leftovers(engine):
            if left.kind == "image" and left.alive is False:
                remove_engine_leftover(engine, left)


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The engine of this machine. A test that takes it is marked `engine`."""
    with ExitStack() as stack:
        try:
            engine = stack.enter_context(connect())
        except EngineUnavailableError as error:
            _give_up(error.message)
        yield engine


@pytest.fixture(scope="session")
def arm64_engine(engine: Engine, arm64: TargetProfile) -> Engine:
    """The engine, where it runs arm64 programs. A test that takes it is marked `emulation`."""
    if engine.architecture is not Architecture.ARM64:
        problem = emulator_problem(engine, Architecture.ARM64, Version(arm64.verification.emulator_minimum))
        if problem:
            _give_up(problem)
    return engine


@pytest.fixture(scope="session")
def arm64() -> TargetProfile:
    return find_target("arm64")


@pytest.fixture(scope="session")
def amd64() -> TargetProfile:
    return find_target("x86")


def _give_up(reason: str) -> NoReturn:
    if os.environ.get("BUNDLER_REQUIRE_ENGINE") == "1":
        pytest.fail(f"BUNDLER_REQUIRE_ENGINE=1, but {reason}")
    pytest.skip(reason)
