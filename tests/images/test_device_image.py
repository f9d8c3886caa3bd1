from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundler.errors import EngineUnavailableError
from bundler.files.tar_files import Member
from bundler.images import device_image as image
from bundler.images.device_image import ImageArchive, ImageRequest, assemble_image
from bundler.images.layers import write_layer
from bundler.images.runtime_layer import RuntimeLayer, Wheel
from bundler.targets import TargetProfile

REFERENCE = "mobilenet_v2:arm64-qnnpack"


@pytest.fixture(autouse=True)
def small_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use layers of a few bytes instead of Debian's packages and the wheels (tests/integration uses those)."""
    base = write_layer(tmp_path / "base.tar", [Member(name="usr/bin/python3", mode=0o755, source=b"python")])
    runtime = write_layer(tmp_path / "runtime.tar", [Member(name="opt/runtime/numpy.py", mode=0o644)])
    wheels = (Wheel(file="numpy.whl", sha256="0" * 64),)
    monkeypatch.setattr(image, "base_layer", lambda _profile: base)
    monkeypatch.setattr(image, "runtime_layer", lambda _profile: RuntimeLayer(layer=runtime, wheels=wheels))


def _assemble(profile: TargetProfile, folder: Path, **changes: Any) -> ImageArchive:
    bundle = folder / "bundle"
    bundle.mkdir(parents=True)
    (bundle / "device.pyz").write_text("print('hello')")
    request = ImageRequest(
        bundle=bundle,
        files=["device.pyz"],
        reference=REFERENCE,
        labels={"org.opencontainers.image.title": "MobileNetV2"},
    )
    return assemble_image(profile, replace(request, **changes), engine=None, workspace=folder / "workspace")


def _read(archive: ImageArchive, name: str) -> Any:
    with tarfile.open(archive.path) as tar:
        content = tar.extractfile(name)
        assert content is not None
        return json.load(content)


def test_two_assemblies_give_the_same_bytes(arm64: TargetProfile, tmp_path: Path) -> None:
    first = _assemble(arm64, tmp_path / "a")
    second = _assemble(arm64, tmp_path / "b")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.digest == second.digest


def test_the_config_has_user_entry_point_environment_and_labels(arm64: TargetProfile, tmp_path: Path) -> None:
    archive = _assemble(arm64, tmp_path)
    config = _read(archive, _read(archive, "manifest.json")[0]["Config"])
    assert (config["architecture"], config["os"], config["created"]) == ("arm64", "linux", "1970-01-01T00:00:00Z")
    assert config["config"]["User"] == arm64.image.user
    assert config["config"]["Entrypoint"] == ["/usr/bin/python3", "/opt/bundle/device.pyz"]
    assert config["config"]["Cmd"] == ["selftest"]
    assert config["config"]["WorkingDir"] == "/opt/bundle"
    assert {"PYTHONPATH=/opt/runtime", "ORT_DISABLE_TELEMETRY=1"} <= set(config["config"]["Env"])
    assert config["config"]["Labels"] == {
        "org.opencontainers.image.title": "MobileNetV2",
        "edge-bundler.target": "arm64-qnnpack",
    }
    assert config["rootfs"]["diff_ids"] == list(archive.diff_ids)
    assert len(config["history"]) == len(archive.diff_ids)


def test_blobs_and_descriptors_match_in_digest_and_size(arm64: TargetProfile, tmp_path: Path) -> None:
    archive = _assemble(arm64, tmp_path)
    sizes = {}
    with tarfile.open(archive.path) as tar:
        for entry in tar:
            if entry.isfile() and entry.name.startswith("blobs/"):
                content = tar.extractfile(entry)
                assert content is not None
                data = content.read()
                assert entry.name == f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"
                sizes[f"sha256:{Path(entry.name).name}"] = len(data)
    (described,) = _read(archive, "index.json")["manifests"]
    manifest = _read(archive, f"blobs/{described['digest'].replace(':', '/')}")
    for descriptor in (described, manifest["config"], *manifest["layers"]):
        assert sizes[descriptor["digest"]] == descriptor["size"]
    assert manifest["config"]["digest"] == archive.digest
    assert [layer["digest"] for layer in manifest["layers"]] == list(archive.diff_ids)
    assert sum(layer["size"] for layer in manifest["layers"]) == archive.size_bytes
    assert _read(archive, "manifest.json")[0]["RepoTags"] == [REFERENCE]


@pytest.mark.parametrize(
    ("reference", "full"),
    [
        ("resnet18:x86-fbgemm", "docker.io/library/resnet18:x86-fbgemm"),
        ("acme/resnet18:1", "docker.io/acme/resnet18:1"),
        ("localhost:5000/resnet18:1", "localhost:5000/resnet18:1"),
        ("ghcr.io/acme/resnet18:1", "ghcr.io/acme/resnet18:1"),
    ],
)
def test_the_index_has_the_full_reference_for_containerd(
    arm64: TargetProfile, tmp_path: Path, reference: str, full: str
) -> None:
    (described,) = _read(_assemble(arm64, tmp_path, reference=reference), "index.json")["manifests"]
    assert described["annotations"] == {
        "io.containerd.image.name": full,
        "org.opencontainers.image.ref.name": reference.rpartition(":")[2],
    }


def test_a_changed_file_changes_the_digest(arm64: TargetProfile, tmp_path: Path) -> None:
    first = _assemble(arm64, tmp_path / "a")
    other = tmp_path / "other"
    other.mkdir()
    (other / "device.pyz").write_text("print('goodbye')")
    assert _assemble(arm64, tmp_path / "b", bundle=other).digest != first.digest


def test_a_base_image_needs_an_engine(arm64: TargetProfile, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailableError, match=r"--base-image python:3\.11-slim"):
        _assemble(arm64, tmp_path, base_image="python:3.11-slim")
