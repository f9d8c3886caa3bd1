"""The probe and selftest documents: what the device program prints is what the build host reads, version by version."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from bundler.device.answers import Probe, Selftest, as_json
from bundler.errors import EmulatorError
from bundler.verification.device_answers import read_probe, read_selftest

from .conftest import TinyBundle


@pytest.fixture
def printed(bundle: TinyBundle, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a command prints."""
    document: dict[str, Any] = json.loads(bundle.run(request.param, "--json").stdout)
    return document


of_each_command = pytest.mark.parametrize(
    ("printed", "read"), [("probe", read_probe), ("selftest", read_selftest)], indirect=["printed"]
)


@of_each_command
def test_the_build_host_reads_what_the_device_prints(printed: dict[str, Any], read: Callable[[str], Probe | Selftest]) -> None:
    assert json.loads(json.dumps(as_json(read(json.dumps(printed))))) == printed
    assert next(iter(printed)) == "schema"


@of_each_command
def test_another_schema_version_or_a_missing_key_is_refused(
    printed: dict[str, Any], read: Callable[[str], Probe | Selftest]
) -> None:
    for schema in ("edge-bundler/probe/99", "edge-bundler/selftest/1", "", None, 1):
        with pytest.raises(EmulatorError, match="the device program's answer cannot be read: schema: ") as error:
            read(json.dumps({**printed, "schema": schema}))
        assert "build it again" in error.value.next_step
    for name in printed:
        with pytest.raises(EmulatorError, match=f"answer cannot be read: {name}: "):
            read(json.dumps({key: value for key, value in printed.items() if key != name}))
