"""The probe: what this machine is, and whether its arithmetic is correct."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path

import numpy as np

from .conftest import TinyBundle

SITE_PACKAGES = Path(sysconfig.get_paths()["platlib"])


def test_a_wrong_answer_of_the_processor_is_named(bundle: TinyBundle) -> None:
    bundle.change_program("device/arithmetic.py", '"float32 divide": a32 / b32', '"float32 divide": a32 * (1 / b32)')
    done = bundle.run("probe", "--json")
    assert done.returncode == 1
    checks = json.loads(done.stdout)["known_answers"]["checks"]
    assert [name for name, right in checks.items() if not right] == ["float32 divide"]
    assert "arithmetic: WRONG in float32 divide" in bundle.run("probe").stdout
    assert bundle.run("selftest").returncode == 1


def test_the_probe_names_this_machine_and_needs_no_bundle(bundle: TinyBundle) -> None:
    (bundle.root / "runner.json").unlink()
    done = bundle.run("probe", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "edge-bundler/probe/1"
    assert document["emulator"] is None
    assert document["numpy"] == np.__version__
    assert document["cpu"]["features"] == sorted(document["cpu"]["features"]) != []
    assert document["cpu"]["model"] != "unknown"
    assert document["known_answers"]["passed"] is True
