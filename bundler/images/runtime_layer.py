"""The runtime layer: numpy and ONNX Runtime for the target in /opt/runtime, from wheels selected by platform tag."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from bundler import console
from bundler.engines.helper_program import full_disk, run_helper
from bundler.errors import ImageError, OutOfSpaceError
from bundler.files.sha256 import sha256_of
from bundler.files.tar_files import Member
from bundler.images.cache import cached_folder
from bundler.images.excluded_files import ExcludeList
from bundler.images.layers import Layer, write_layer
from bundler.resources import resource
from bundler.targets import RuntimeProfile, TargetProfile

__all__ = ["RUNTIME", "RuntimeLayer", "Wheel", "runtime_layer"]

RUNTIME = "opt/runtime"
_EXCLUDED = resource("docker", "runtime", "excluded-files.txt")
_SECONDS = 3600.0  # time limit of pip, for slow connections


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A downloaded wheel: its file name and the SHA-256 of its bytes, in hexadecimal."""

    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class RuntimeLayer:
    """The layer, and the wheels whose files it contains."""

    layer: Layer
    wheels: tuple[Wheel, ...]


def runtime_layer(profile: TargetProfile) -> RuntimeLayer:
    """Return the runtime layer of a target, downloaded on the first call and cached; later calls need no network.

    Raises:
        ImageError: pip cannot download a wheel of one of the requirements for that platform.
        OutOfSpaceError: the disk is full.
    """
    facts = {
        "python": profile.runtime.python,
        "requirements": profile.runtime.requirements,
        "wheel_platforms": profile.runtime.wheel_platforms,
        "excluded": ExcludeList.read(_EXCLUDED).patterns,
    }
    folder = cached_folder("runtime", facts, lambda partial: _build(profile, partial))
    wheels = json.loads((folder.path / "wheels.json").read_text(encoding="utf-8"))
    return RuntimeLayer(layer=folder.layer("layer.tar"), wheels=tuple(Wheel(**wheel) for wheel in wheels))


def _build(profile: TargetProfile, folder: Path) -> None:
    console.step(f"Downloading {', '.join(profile.runtime.requirements)} for {profile.platform}")
    downloads = folder / "wheels"
    _download(profile.runtime, downloads)
    files = sorted(downloads.glob("*.whl"))
    layer = write_layer(folder / "layer.tar", (member for file in files for member in _kept(file)))
    wheels = [Wheel(file=file.name, sha256=sha256_of(file)) for file in files]
    (folder / "wheels.json").write_text(json.dumps([asdict(wheel) for wheel in wheels], indent=2), encoding="utf-8")
    console.detail(f"runtime: {layer.size_bytes / 1e6:.0f} MB from {', '.join(file.name for file in files)}")
    for file in files:
        file.unlink()
    downloads.rmdir()


def _download(runtime: RuntimeProfile, destination: Path) -> None:
    tag = f"cp{runtime.python.replace('.', '')}"
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"),
        *("--no-deps", "--only-binary=:all:", f"--dest={destination}"),
        *("--implementation=cp", f"--python-version={runtime.python}"),
        *(f"--abi={abi}" for abi in (tag, "abi3", "none")),
        *(f"--platform={platform}" for platform in runtime.wheel_platforms),
        "--",
        *runtime.requirements,
    ]
    temporary = destination.with_name("temporary")  # TMPDIR may be on a small file system
    temporary.mkdir()
    try:
        with console.progress("pip: downloading wheels", total=None):
            run = run_helper(command, seconds=_SECONDS, environment={"TMPDIR": str(temporary)})
    except subprocess.TimeoutExpired as error:
        raise ImageError(
            f"pip was terminated after its time limit of {_SECONDS / 60:.0f} minutes",
            next_step="Check that the package index is reachable, then run the same command again.",
        ) from error
    shutil.rmtree(temporary, ignore_errors=True)
    if run.returncode:
        full = full_disk(run.stderr, (destination.parent,))
        if full is not None:
            raise OutOfSpaceError(str(full))
        reason = "; ".join(re.findall(r"^ERROR: (.*)$", run.stderr, re.MULTILINE)) or run.stderr[-500:]
        wanted = f"{', '.join(runtime.requirements)} for {runtime.wheel_platforms[0]} and Python {runtime.python}"
        msg = f"pip could not download {wanted}: {reason}"
        raise ImageError(
            msg,
            next_step="Check that the package index is reachable and has these versions for the target's `wheel_platforms`.",
        )


def _kept(wheel: Path) -> Iterator[Member]:
    """Yield the files of a wheel that are not excluded, under the paths to which an installer writes them."""
    exclude_list = ExcludeList.read(_EXCLUDED)
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            if entry.is_dir() or exclude_list.excludes(entry.filename):
                continue
            installed = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", entry.filename)
            mode = 0o755 if entry.external_attr >> 16 & stat.S_IXUSR else 0o644
            yield Member(name=f"{RUNTIME}/{installed}", mode=mode, source=archive.read(entry))
