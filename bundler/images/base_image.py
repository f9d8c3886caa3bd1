"""The base layer: Debian's Python, unpacked from packages of the target's architecture without executing any of them."""

from __future__ import annotations

import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bundler import console
from bundler.engines.helper_program import full_disk, run_helper
from bundler.errors import ImageError, OutOfSpaceError
from bundler.files.tar_files import Member
from bundler.images.cache import cached_folder
from bundler.images.excluded_files import ExcludeList
from bundler.images.layers import Layer, write_layer
from bundler.resources import resource
from bundler.targets import TargetProfile

__all__ = ["base_layer"]

# It contains /etc/os-release, from which scanners read the distribution, and directories such as /tmp and /proc.
_SKELETON = "base-files"
_EXCLUDED = resource("docker", "base", "excluded-files.txt")
_HOOK = resource("docker", "base", "record-packages.sh")
_SECONDS = 3600.0  # time limit of mmdebstrap, for slow connections


def base_layer(profile: TargetProfile) -> Layer:
    """Return the root file system of a target's base image, built on the first call and cached.

    Equal package versions give equal bytes.

    Raises:
        ImageError: mmdebstrap is not installed, or failed.
        OutOfSpaceError: the disk is full.
    """
    facts = {
        "suite": profile.image.suite,
        "packages": profile.image.packages,
        "architecture": profile.architecture.debian,
        "excluded": ExcludeList.read(_EXCLUDED).patterns,
        "hook": _HOOK.read_text(encoding="utf-8"),
        "skeleton": _SKELETON,
    }
    return cached_folder("base", facts, lambda partial: _build(profile, partial)).layer("layer.tar")


def _build(profile: TargetProfile, folder: Path) -> None:
    console.step(f"Building the base image from Debian {profile.image.suite} packages for {profile.platform}")
    unpacked = folder / "unpacked.tar"
    _unpack_packages(profile, unpacked)
    layer = write_layer(folder / "layer.tar", _kept(unpacked))
    console.detail(f"base image: {layer.size_bytes / 1e6:.0f} MB of {unpacked.stat().st_size / 1e6:.0f} MB kept")
    unpacked.unlink()


def _unpack_packages(profile: TargetProfile, destination: Path) -> None:
    program = shutil.which("mmdebstrap")
    if program is None:
        raise ImageError(
            "building the base image requires mmdebstrap, which is not installed",
            next_step="Run `apt-get install mmdebstrap`, or specify a base image: `--base-image python:3.11-slim-bookworm`.",
        )
    command = [
        program,
        f"--architectures={profile.architecture.debian}",
        "--variant=extract",
        f"--include={','.join((_SKELETON, *profile.image.packages))}",
        f"--extract-hook={_HOOK}",
        '--aptopt=Acquire::Retries "3"',
        "--",
        profile.image.suite,
        str(destination),
    ]
    temporary = tempfile.gettempdir()  # mmdebstrap uses TMPDIR even if it does not exist
    try:
        with console.progress("mmdebstrap: downloading and unpacking packages", total=None):
            run = run_helper(command, seconds=_SECONDS, environment={"SOURCE_DATE_EPOCH": "0", "TMPDIR": temporary})
    except subprocess.TimeoutExpired as error:
        raise ImageError(
            f"mmdebstrap was terminated after its time limit of {_SECONDS / 60:.0f} minutes",
            next_step="Check that Debian's mirror is reachable, or specify a base image with `--base-image`.",
        ) from error
    if run.returncode:
        full = full_disk(run.stderr, (Path(temporary), destination.parent))
        if full is not None:
            raise OutOfSpaceError(str(full))
        reason = "; ".join(line for line in run.stderr.splitlines() if line.startswith("E:")) or run.stderr[-500:]
        msg = f"mmdebstrap could not unpack Debian {profile.image.suite} for {profile.architecture.debian}: {reason}"
        raise ImageError(
            msg,
            next_step="Check that Debian's mirror is reachable, or specify a base image with `--base-image`.",
        )


def _kept(unpacked: Path) -> Iterator[Member]:
    """Yield the members that are not excluded; an excluded directory is still written if a file in it is not excluded."""
    exclude_list = ExcludeList.read(_EXCLUDED)
    with tarfile.open(unpacked) as tar:
        for entry in tar:
            name = entry.name.removeprefix("./").rstrip("/")
            if (
                name in ("", ".")
                or exclude_list.excludes(name)
                or not (entry.isdir() or entry.isfile() or entry.issym() or entry.islnk())
            ):
                continue
            yield _member(tar, entry, name)


def _member(tar: tarfile.TarFile, entry: tarfile.TarInfo, name: str) -> Member:
    if entry.isdir():
        return Member(name=name, mode=stat.S_IFDIR | entry.mode)
    if entry.issym():
        return Member(name=name, mode=entry.mode, link=entry.linkname)
    content = tar.extractfile(entry)  # of a hard link: that of the file it links to
    assert content is not None  # noqa: S101  only directories and devices have none
    with content:
        return Member(name=name, mode=entry.mode, source=content.read())
