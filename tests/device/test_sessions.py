"""Loading numpy and ONNX Runtime: missing, too old, and the number of threads."""

from __future__ import annotations

import json
import sys
import sysconfig
from pathlib import Path

import onnxruntime
import pytest

from .conftest import TinyBundle

SITE_PACKAGES = Path(sysconfig.get_paths()["platlib"])


def test_an_onnxruntime_that_is_too_old_is_named_with_a_step_that_fits_this_python(bundle: TinyBundle) -> None:
    bundle.configure({**bundle.config, "onnxruntime_minimum": "99.1", "python_minimum": "3.9"})
    picture = bundle.root / "golden/inputs.npy"
    for command in (("selftest",), ("run", "--mode", "fp32", str(picture))):
        done = bundle.run(*command)
        assert done.returncode == 4
        assert f"needs onnxruntime ≥ 99.1, found {onnxruntime.__version__}" in done.stderr
        assert "requirements.txt" in done.stderr
    bundle.configure({**bundle.config, "python_minimum": "3.99"})
    done = bundle.run("selftest")
    assert done.returncode == 4
    assert "use Python 3.99 or newer" in done.stderr
    assert "requirements.txt" not in done.stderr
    bundle.configure({**bundle.config, "onnxruntime_minimum": "1.9"})  # older than 1.17, though not as text
    assert bundle.run("selftest").returncode == 0


def test_the_probe_does_not_load_onnxruntime(bundle: TinyBundle, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    assert bundle.run("probe", PYTHONPATH=str(tmp_path)).returncode == 0


def test_without_numpy(bundle: TinyBundle) -> None:
    done = bundle.run("selftest", program=(sys.executable, "-I", "-S"))
    assert done.returncode == 4
    assert "numpy cannot be loaded" in done.stderr
    assert "requirements.txt" in done.stderr


def test_without_onnxruntime(bundle: TinyBundle, tmp_path: Path) -> None:
    for package in SITE_PACKAGES.glob("numpy*"):
        (tmp_path / package.name).symlink_to(package)
    alone = (sys.executable, "-S")
    done = bundle.run("selftest", program=alone, PYTHONPATH=str(tmp_path))
    assert done.returncode == 4
    assert "onnxruntime cannot be loaded" in done.stderr
    assert json.loads(bundle.run("probe", "--json", program=alone, PYTHONPATH=str(tmp_path)).stdout)["onnxruntime"] is None


@pytest.mark.parametrize("threads", ["0", "-1", "many", "1.5"])
def test_a_bad_number_of_threads_is_refused(bundle: TinyBundle, threads: str) -> None:
    done = bundle.run("selftest", EDGE_BUNDLER_THREADS=threads)
    assert done.returncode == 2
    assert "EDGE_BUNDLER_THREADS" in done.stderr


def test_one_thread_gives_the_same_int8_outputs(bundle: TinyBundle) -> None:
    alone = json.loads(bundle.run("selftest", "--json", "--mode", "int8-ptq", EDGE_BUNDLER_THREADS="1").stdout)
    assert alone["modes"] == bundle.selftest("--mode", "int8-ptq")["modes"]
