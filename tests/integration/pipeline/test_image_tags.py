"""Device images and their names: whose an image is, what it is called, and when it goes; on the real engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import docker
from bundler.engines.container_engine import connect
from bundler.engines.engine_leftovers import find_engine_leftovers
from bundler.files.sha256 import sha256_of
from bundler.images.device_image import BUNDLE_LABEL
from bundler.manifest import read_manifest
from bundler.packaging.checksums import write_checksums

pytestmark = pytest.mark.engine

BUNDLER = str(Path(sys.executable).with_name("bundler"))
SMALL = ("--mode", "int8-ptq", "--weights", "random", "--input-size", "32", "--num-classes", "4", "--calibration-images", "4")

Build = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The x86 target on this CPU alone: everything about images, and nothing emulated."""
    text = (Path(__file__).parents[3] / "targets" / "x86-fbgemm.toml").read_text(encoding="utf-8")
    text = re.sub(r"^also_verify_on = .*$", "also_verify_on = []", text, flags=re.MULTILINE)
    head, *cpus = re.split(r"^(?=\[\[verification\.cpus\]\])", text, flags=re.MULTILINE)
    native = next(cpu for cpu in cpus if '"native"' in cpu)
    path = tmp_path_factory.mktemp("targets") / "native.toml"
    path.write_text(head + native, encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def client() -> Iterator[docker.DockerClient]:
    client = docker.from_env()
    before = {tag for image in client.images.list() for tag in image.tags}
    yield client
    for image in client.images.list():
        for tag in set(image.tags) - before:
            client.images.remove(tag)
    client.close()


@pytest.fixture
def build(profile: Path) -> Build:
    def run(output: Path, seed: int, *options: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [BUNDLER, "bundle", "resnet18", "--target", str(profile), *SMALL, "--seed", str(seed), *options]
        done = subprocess.run(
            [*command, "--output", str(output)], capture_output=True, text=True, check=False, timeout=500, env={**os.environ}
        )
        assert done.returncode == code, done.stderr
        return done

    return run


def left_behind() -> list[str]:
    """Return the temporary images of commands that have ended."""
    with connect() as engine:
        return [left.name for left in find_engine_leftovers(engine) if left.kind == "image"]


def place(output: Path) -> Path:
    return output / "x86-fbgemm" / "resnet18"


def documented_command(bundle: Path) -> list[str]:
    """Return the `docker run` line of the bundle's README."""
    (line,) = re.findall(r"^    (docker run .* selftest --expect .*)$", (bundle / "README.md").read_text(), re.MULTILINE)
    return str(line).split()


def outputs_of(bundle: Path) -> str:
    (mode,) = read_manifest(bundle).modes
    (evidence,) = mode.evidence
    return str(evidence.outputs_sha256)


def test_two_builds_of_one_model_have_an_image_each_and_their_commands_run_the_right_one(
    build: Build, client: docker.DockerClient, tmp_path: Path
) -> None:
    with ThreadPoolExecutor() as pool:  # at the same time: each must execute and record its own
        list(pool.map(lambda seed: build(tmp_path / str(seed), seed), (1, 2)))
    first, second = place(tmp_path / "1"), place(tmp_path / "2")
    assert outputs_of(first) != outputs_of(second)
    for bundle in (first, second):
        manifest = read_manifest(bundle)
        assert manifest.image is not None
        assert manifest.image.reference == f"resnet18:x86-fbgemm-{manifest.image.digest[7:19]}"
        (evidence,) = manifest.modes[0].evidence
        assert evidence.image_digest == manifest.image.digest
        assert evidence.model_sha256 == sha256_of(bundle / "models" / "int8-ptq.onnx")
        assert evidence.bundle_sha256 == sha256_of(bundle / "runner.json")
        done = subprocess.run([*documented_command(bundle), "--json"], capture_output=True, text=True, check=False, timeout=120)
        (mode,) = json.loads(done.stdout)["modes"]
        assert mode["outputs_sha256"] == outputs_of(bundle)
    assert left_behind() == []

    image = read_manifest(first).image
    assert image is not None
    repository, tag = image.reference.split(":")
    client.images.get(read_manifest(second).image.reference).tag(repository, tag)  # type: ignore[union-attr]
    done = subprocess.run(documented_command(first), capture_output=True, text=True, check=False, timeout=120)
    client.images.remove(image.digest)  # it has no name any more
    assert done.returncode == 3
    assert "this is another bundle" in done.stderr


def test_a_replaced_image_is_removed_when_no_bundle_needs_it(build: Build, client: docker.DockerClient, tmp_path: Path) -> None:
    # Weights that no bundle of an earlier run has: that bundle may still exist, and need the same image.
    seed = time.time_ns() % 2**31
    build(tmp_path / "a", seed)
    build(tmp_path / "b", seed)  # the same bytes: two bundles name one image
    image = read_manifest(place(tmp_path / "a")).image
    assert image == read_manifest(place(tmp_path / "b")).image
    assert image is not None
    assert client.images.get(image.reference).labels[BUNDLE_LABEL] == sha256_of(place(tmp_path / "a") / "runner.json")

    build(tmp_path / "a", 4)
    assert client.images.get(image.reference).id == image.digest  # the other bundle needs it
    build(tmp_path / "b", 4, "--tag", "edge-bundler-test/mine:1")
    with pytest.raises(docker.errors.ImageNotFound):
        client.images.get(image.reference)
    assert client.images.get("edge-bundler-test/mine:1").id == read_manifest(place(tmp_path / "b")).image.digest  # type: ignore[union-attr]
    assert left_behind() == []


def test_verify_replaces_evidence_that_is_false_and_says_so(build: Build, profile: Path, tmp_path: Path) -> None:
    build(tmp_path, 5)
    bundle = place(tmp_path)
    true = outputs_of(bundle)
    document = json.loads((bundle / "manifest.json").read_text())
    document["modes"][0]["evidence"][0]["outputs_sha256"] = "0" * 64
    (bundle / "manifest.json").write_text(json.dumps(document))
    write_checksums(bundle)
    command = [BUNDLER, "verify", "--target", str(profile), str(bundle)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"outputs 000000000000 are recorded, {true[:12]} were computed now" in done.stderr
    (result,) = json.loads(done.stdout)
    assert result["manifest_rewritten"]
    assert len(result["contradicted"]) == 1
    assert outputs_of(bundle) == true
    again = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, timeout=300)
    assert json.loads(again.stdout)[0]["contradicted"] == []
