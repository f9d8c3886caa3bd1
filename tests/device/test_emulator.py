"""Whether the CPU is emulated, as seen from inside."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from .conftest import TinyBundle, mode_of

SITE_PACKAGES = Path(sysconfig.get_paths()["platlib"])


def test_a_python_started_by_another_program_is_not_called_native(bundle: TinyBundle) -> None:
    loader = next(Path("/lib64").glob("ld-linux*.so.*"), None) or next(Path("/lib").glob("ld-linux*.so.*"))
    done = bundle.run("probe", "--json", program=(str(loader), os.path.realpath(sys.executable)), PYTHONPATH=str(SITE_PACKAGES))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["emulator"]["name"] == "unknown"
    assert document["emulation"] == "unknown"
    assert "which is not this Python" in document["emulation_reason"]


def test_a_python_that_cannot_read_itself_does_not_tell_whether_the_cpu_is_emulated(bundle: TinyBundle, tmp_path: Path) -> None:
    """Of a program that may be executed and not read, the kernel hides what it executes: nothing can be claimed."""
    python = tmp_path / "python3"
    shutil.copy(os.path.realpath(sys.executable), python)
    python.chmod(0o111)
    program: tuple[str, ...] = (str(python),)
    if os.geteuid() == 0:  # root reads everything, unless it has lost its capabilities
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("setpriv (util-linux) is not installed")
        program = (setpriv, "--bounding-set=-all", "--inh-caps=-all", "env", *program)  # `env` has none any more
    home = {"PYTHONHOME": sys.base_prefix, "PYTHONPATH": str(SITE_PACKAGES)}
    done = bundle.run("probe", "--json", program=program, **home)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["emulation"], document["emulator"]) == ("unknown", None)
    assert "Permission denied" in document["emulation_reason"]
    spoken = bundle.run("probe", program=program, **home)
    assert "note: could not determine whether this CPU is emulated" in spoken.stderr
    assert "this CPU is emulated (" not in spoken.stderr


@pytest.mark.emulation
@pytest.mark.parametrize(("cpu", "present", "absent"), [("Haswell", "AVX2", "AVX512F"), ("Nehalem", "SSE42", "AVX2")])
def test_under_qemu_it_says_so(bundle: TinyBundle, cpu: str, present: str, absent: str) -> None:
    qemu = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    if qemu is None or os.uname().machine != "x86_64":
        if os.environ.get("BUNDLER_REQUIRE_ENGINE"):
            pytest.fail("qemu-x86_64 is not installed")
        pytest.skip("needs qemu-x86_64 on an x86-64 host")
    done = bundle.run("selftest", "--json", program=(qemu, "-cpu", cpu, sys.executable))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    version = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    assert document["emulator"] == {
        "name": "qemu-x86_64",
        "version": version.partition(" version ")[2],
        "sha256": hashlib.sha256(Path(qemu).read_bytes()).hexdigest(),
    }
    assert document["cpu"]["model"] == cpu
    assert present in document["cpu"]["features"]
    assert absent not in document["cpu"]["features"]
    assert mode_of(document, "int8-ptq")["max_steps"] == 0
