"""A user's own model for real: the example packages of `tests/fixtures/user_model`, installed into a fresh environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from bundler.engines.container_engine import Engine
from bundler.engines.emulation import Launch, decide_launch
from bundler.manifest import Manifest, read_manifest
from bundler.models.registry import models
from bundler.targets import TargetProfile

EXAMPLES = Path(__file__).parents[2] / "fixtures" / "user_model"
NOWHERE = "unix:///nonexistent/engine.sock"
MAIN = "from bundler.cli import main; main()"
BUILD = ("bundle", "tiny_net", "--target", "x86", "--weights", "random", "--num-classes", "10", "--calibration-images", "8")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment that holds the two packages, and borrows everything else from this one.

    pip and setuptools (torch requires it) are borrowed too: nothing is downloaded, and no older one of `venv` is in the way.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # As a folder of packages and not as a path, so that an editable install of bundler is followed.
    (site_packages / "borrowed.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    python = folder / "bin" / "python"
    sources = shutil.copytree(EXAMPLES, tmp_path_factory.mktemp("sources") / "user_model")  # setuptools builds in there
    install = ["install", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "--no-cache-dir"]
    run = subprocess.run(
        [python, "-m", "pip", *install, sources / "tiny_net", sources / "broken_net"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return python


@pytest.fixture(scope="session")
def bundler(python: Path) -> Run:
    """Run `bundler` in that environment, and expect an exit code; never a traceback."""

    def run_bundler(*arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(python), "-c", MAIN, *arguments]
        run = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, **environment}, timeout=800
        )
        assert run.returncode == code, run.stderr
        assert "Traceback" not in run.stderr
        return run

    return run_bundler


def test_it_is_listed_with_its_package_and_the_broken_one_with_the_reason(bundler: Run) -> None:
    document = {row["name"]: row for row in json.loads(bundler("models", "--json").stdout)}
    assert document.keys() == {*models(), "tiny_net", "broken_net"}
    assert all(document[name]["row"] == row.name and document[name]["modes"] for name, (row, _) in models().items())
    assert document["tiny_net"] == {
        "name": "tiny_net",
        "row": "tiny-net 0.3.0",
        "task": "classification",
        "input_size": 64,
        "modes": ["fp32", "int8-ptq", "int8-qat"],
        "int8_scopes": ["whole"],
        "reason": "",
    }
    assert document["broken_net"]["row"] == "broken-net 0.1.0"
    assert document["broken_net"]["modes"] == []
    assert "ImportError: broken_net needs a library that is not here" in document["broken_net"]["reason"]


def test_for_people_the_broken_one_is_a_warning_below_the_table(bundler: Run) -> None:
    run = bundler("models")
    lines = run.stdout.splitlines()
    assert len(lines) == 1 + len(models()) + 1
    assert lines[-1].split("  ")[0] == "tiny_net"
    assert "tiny-net 0.3.0" in lines[-1]
    (warning,) = run.stderr.splitlines()
    assert warning.startswith("! warning: broken_net of broken-net 0.1.0 cannot be used: broken_net:broken_net cannot be")
    assert warning.endswith("(ImportError: broken_net needs a library that is not here)")


def test_the_broken_one_is_refused_by_name_and_nothing_is_written(bundler: Run, tmp_path: Path) -> None:
    run = bundler("bundle", "broken_net", "--target", "x86", "--output", str(tmp_path), code=4)
    assert "error: broken_net of broken-net 0.1.0 cannot be used: " in run.stderr
    assert "broken_net needs a library that is not here" in run.stderr
    assert "next: Repair or uninstall that package" in run.stderr
    assert run.stdout == ""
    assert not any(tmp_path.iterdir())


def test_it_becomes_a_bundle_and_its_package_is_the_row(bundler: Run, tmp_path: Path, amd64: TargetProfile) -> None:
    cpus = _reachable(None, amd64)
    run = bundler(*BUILD, "--output", str(tmp_path), "--json", code=_code(cpus, amd64), DOCKER_HOST=NOWHERE)
    bundle = tmp_path / "x86-fbgemm" / "tiny_net"
    manifest = read_manifest(bundle)
    assert Manifest.model_validate_json(run.stdout) == manifest
    assert manifest.image is None
    assert bundle.with_name("tiny_net.tar.gz").is_file()
    _check(manifest, cpus, place="host")


@pytest.mark.engine
@pytest.mark.emulation
def test_it_passes_in_a_device_image_of_its_own(engine: Engine, bundler: Run, tmp_path: Path, amd64: TargetProfile) -> None:
    cpus = _reachable(engine, amd64)
    bundler(*BUILD, "--output", str(tmp_path), code=_code(cpus, amd64))
    manifest = read_manifest(tmp_path / "x86-fbgemm" / "tiny_net")
    assert manifest.image is not None
    try:
        assert manifest.image.reference == f"tiny_net:x86-fbgemm-{manifest.image.digest[7:19]}"
        assert engine.client.images.get(manifest.image.reference).id == manifest.image.digest
        _check(manifest, cpus, place="container")
    finally:
        engine.client.images.remove(manifest.image.reference, force=True)


def _reachable(engine: Engine | None, target: TargetProfile) -> list[str]:
    """Return the CPUs of the target that this machine is, or can emulate."""
    return [cpu.name for cpu in target.verification.cpus if isinstance(decide_launch(engine, target, cpu), Launch)]


def _code(cpus: list[str], target: TargetProfile) -> int:
    return 0 if len(cpus) == len(target.verification.cpus) else 3


def _check(manifest: Manifest, cpus: list[str], *, place: str) -> None:
    assert (manifest.model.name, manifest.model.row) == ("tiny_net", "tiny-net 0.3.0")
    assert manifest.model.num_classes == 10
    assert manifest.model.input.shape == (0, 3, 64, 64)
    assert manifest.model.output.shape == (0, 10)
    assert (manifest.model.preprocessing.resize, manifest.model.preprocessing.crop) == (72, 64)
    assert manifest.model.weights.source == "random:0"
    fp32, int8 = manifest.modes
    assert (fp32.name, int8.name) == ("fp32", "int8-ptq")
    assert int8.quantization is not None
    assert int8.quantization.float_operators == {}
    for mode in manifest.modes:
        passed = [evidence for evidence in mode.evidence if evidence.verdict == "passed"]
        assert [evidence.cpu for evidence in passed] == cpus, mode.reason
        assert {evidence.place for evidence in passed} <= {place}
