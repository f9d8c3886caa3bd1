"""The names of each architecture."""

from __future__ import annotations

import pytest

from bundler.architecture import Architecture


@pytest.mark.parametrize("name", ["arm64", "aarch64", "ARM64", "linux/arm64", "linux/arm64/v8"])
def test_every_name_is_parsed(name: str) -> None:
    assert Architecture.parse(name) is Architecture.ARM64


def test_names_for_oci_debian_and_uname() -> None:
    amd64 = Architecture.parse("x86_64")
    assert (amd64.platform, amd64.debian, amd64.machine) == ("linux/amd64", "amd64", "x86_64")


@pytest.mark.parametrize("name", ["", "arm", "linux/riscv64"])
def test_other_architectures_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not one of linux/amd64, linux/arm64"):
        Architecture.parse(name)
