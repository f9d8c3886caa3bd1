"""Run pairs of commands concurrently, and check that each bundle contains its own results. Requires a container engine.

    python tests/attacks/concurrency.py --pairs 50

Each pair is two `bundler` processes on the same model: two builds into different or equal folders, a build and a `verify`,
two `verify` of one bundle, builds for both targets. After each pair the evidence of every bundle is compared with what its
device program computes on this machine. Prints one line per pair and the counts; exits with 1 if a bundle was wrong.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
from bundler.engines.owner import TEMPORARY

BUNDLER = [sys.executable, "-c", "from bundler.cli import main; main()"]
ROOT = Path(__file__).parents[2]
SMALL = ("--mode", "int8-ptq", "--weights", "random", "--input-size", "32", "--num-classes", "4", "--calibration-images", "4")


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """The folder of the output directories, and the two target profiles."""

    folder: Path
    x86: Path
    arm64: Path

    def build(self, seed: int, output: str, *, target: str = "x86") -> list[str]:
        profile = self.arm64 if target == "arm64" else self.x86
        options = ("--target", str(profile), *SMALL, "--seed", str(seed), "--output", str(self.folder / output))
        return [*BUNDLER, "bundle", "resnet18", *options]

    def verify(self, output: str) -> list[str]:
        return [*BUNDLER, "verify", "--target", str(self.x86), str(self.bundle(output))]

    def bundle(self, output: str, *, target: str = "x86") -> Path:
        return self.folder / output / ("arm64-qnnpack" if target == "arm64" else "x86-fbgemm") / "resnet18"


Kind = Callable[[Workspace, int, int], tuple[list[str], list[str]]]

KINDS: dict[str, Kind] = {
    "two builds, two folders": lambda work, a, b: (work.build(a, "one"), work.build(b, "two")),
    "two builds, one folder": lambda work, a, b: (work.build(a, "one"), work.build(b, "one")),
    "build and verify, two bundles": lambda work, a, _: (work.build(a, "two"), work.verify("one")),
    "build and verify, one bundle": lambda work, a, _: (work.build(a, "one"), work.verify("one")),
    "two verify of one bundle": lambda work, *_: (work.verify("one"), work.verify("one")),
    "both targets, one folder": lambda work, a, b: (work.build(a, "one"), work.build(b, "one", target="arm64")),
}


def profile(folder: Path, name: str, cpus: tuple[str, ...]) -> Path:
    """Write a target profile with the given CPUs only."""
    text = (ROOT / "targets" / f"{name}.toml").read_text(encoding="utf-8")
    text = re.sub(r"^also_verify_on = .*$", "also_verify_on = []", text, flags=re.MULTILINE)
    head, *sections = re.split(r"^(?=\[\[verification\.cpus\]\])", text, flags=re.MULTILINE)
    kept = [section for section in sections if any(f'"{cpu}"' in section for cpu in cpus)]
    path = folder / f"{name}.toml"
    path.write_text(head + "".join(kept), encoding="utf-8")
    return path


def run(command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def computed(bundle: Path) -> str:
    """Return the digest of the outputs that the bundle's device program computes on this machine."""
    command = [sys.executable, str(bundle / "device.pyz"), "selftest", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (mode,) = json.loads(done.stdout)["modes"]
    return str(mode["outputs_sha256"])


def problems(bundle: Path, *, executed: bool) -> Iterator[str]:
    """Yield what is wrong with a bundle and its archive."""
    check = ["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"]
    if subprocess.run(check, cwd=bundle, check=False, capture_output=True).returncode:
        yield "its files do not match SHA256SUMS"
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["tar", "-xzf", f"{bundle}.tar.gz", "-C", folder, "--strip-components=1"], check=True)
        if subprocess.run(["diff", "-r", str(bundle), folder], check=False, capture_output=True).returncode:
            yield "its archive contains other files"
    manifest = json.loads((bundle / "manifest.json").read_text())
    digests = {item["outputs_sha256"] for mode in manifest["modes"] for item in mode["evidence"] if item["outputs_sha256"]}
    if executed and digests != {computed(bundle)}:
        yield f"its evidence has the digests {digests}, its model computes {computed(bundle)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=50)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edge-bundler-concurrency-") as text:
        folder = Path(text)
        work = Workspace(
            folder=folder,
            x86=profile(folder, "x86-fbgemm", ("native",)),
            arm64=profile(folder, "arm64-qnnpack", ("cortex-a53",)),
        )
        client = docker.from_env()
        names = {tag for image in client.images.list(name="resnet18") for tag in image.tags}
        failures = tried = 0
        for index, kind in zip(range(arguments.pairs), itertools.cycle(KINDS), strict=False):
            first, second = 2 * index + 1, 2 * index + 2
            if not work.bundle("one").exists() and run(work.build(first, "one")).wait():
                print("the first build failed", file=sys.stderr)
                return 1
            began = time.monotonic()
            pair = [run(command) for command in KINDS[kind](work, first, second)]
            ended = [(process, *process.communicate()) for process in pair]
            found = [f"exit code {process.returncode}: {stderr[-400:]}" for process, _, stderr in ended if process.returncode]
            for output, target in (("one", "x86"), ("two", "x86"), ("one", "arm64")):
                bundle = work.bundle(output, target=target)
                if bundle.exists():
                    found += [f"{output}/{target}: {problem}" for problem in problems(bundle, executed=target == "x86")]
            tried, failures = tried + 1, failures + bool(found)
            print(f"{index + 1:4} {kind:30} {time.monotonic() - began:6.1f} s  {'; '.join(found) or 'passed'}", flush=True)
        for image in client.images.list(name="resnet18"):
            for tag in set(image.tags) - names:
                client.images.remove(tag)
        left = [f"image {image.id}" for image in client.images.list(name=f"{TEMPORARY}/*")]
        left += [path.name for path in folder.rglob(".*") if path.is_dir() or path.is_file()]
        shutil.rmtree(folder / "one", ignore_errors=True)
    print(f"{tried - failures} pairs passed, {failures} failed")
    print(f"leftovers: {', '.join(left) or 'none'}")
    return 1 if failures or left else 0


if __name__ == "__main__":
    sys.exit(main())
