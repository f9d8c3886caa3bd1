"""The command line of the device program: commands, help, and what people read."""

from __future__ import annotations

import json
import re
import sys
import sysconfig
from pathlib import Path

import pytest

from .conftest import TinyBundle

SITE_PACKAGES = Path(sysconfig.get_paths()["platlib"])


def test_people_get_a_table(bundle: TinyBundle) -> None:
    done = bundle.run("selftest")
    assert done.returncode == 0
    assert re.search(r"^mode +verdict +images +SQNR +top-1 as FP32 +max steps$", done.stdout, re.MULTILINE)
    assert re.search(r"^int8-ptq +passed +4 +\d+\.\d dB +100% +0$", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("\nPASSED\n")


def test_info_needs_no_numpy(bundle: TinyBundle) -> None:
    done = bundle.run("info", "--json", program=(sys.executable, "-I", "-S"))
    assert done.returncode == 0
    assert json.loads(done.stdout)["modes"][0]["model"] == "models/int8-ptq.onnx"
    assert bundle.run("info").stdout.startswith("tiny-x86-fbgemm: classification, image -> logits, graph optimization all\n")


@pytest.mark.parametrize("arguments", [(), ("sing",), ("run", "--mode", "fp32"), ("selftest", "--mode", "int4")])
def test_usage(bundle: TinyBundle, arguments: tuple[str, ...]) -> None:
    assert bundle.run(*arguments).returncode == 2


def test_help_tells_the_exit_codes(bundle: TinyBundle) -> None:
    for arguments in (("--help",), ("selftest", "--help")):
        assert "3  a file of the bundle is missing or changed" in bundle.run(*arguments).stdout
