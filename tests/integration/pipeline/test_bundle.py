"""The main job on the real engine: bundles built through the command line, proved on emulated CPUs, and what can go wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

import docker
from bundler.engines.container_engine import connect
from bundler.engines.engine_leftovers import find_engine_leftovers, remove_engine_leftover
from bundler.engines.owner import OWNER_LABEL, Owner
from bundler.files.sha256 import sha256_of
from bundler.manifest import read_manifest
from bundler.packaging.checksums import write_checksums

pytestmark = [pytest.mark.engine, pytest.mark.emulation]

BUNDLER = str(Path(sys.executable).with_name("bundler"))
ARM_CPUS = ["cortex-a53", "cortex-a72", "cortex-a76", "max"]
X86_CPUS = ["native", "Haswell", "Nehalem"]


def bundler(*arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    run = subprocess.run(
        [BUNDLER, *arguments], capture_output=True, text=True, check=False, env={**os.environ, **environment}, timeout=800
    )
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr
    return run


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(7)
    for index in range(24):
        coarse = Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        coarse.resize((140, 100), Image.Resampling.BICUBIC).save(folder / f"{index:02}.jpg")
    return folder


@pytest.fixture(scope="session")
def build(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Build mobilenet_v2 for a target once, and return the bundle's folder."""
    output = tmp_path_factory.mktemp("dist")
    built: dict[str, Path] = {}

    def build_for(target: str) -> Path:
        if target not in built:
            arguments = ("--weights", "random", "--input-size", "64", "--calibration", str(pictures), "--output", str(output))
            run = bundler("bundle", "mobilenet_v2", "--target", target, *arguments, "--calibration-images", "16", "--json")
            manifest = json.loads(run.stdout)
            built[target] = output / manifest["target"]["name"] / "mobilenet_v2"
        return built[target]

    return build_for


@pytest.fixture
def copy(build: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Give a copy of a bundle that a test may damage."""

    def copy_of(target: str) -> Path:
        source = build(target)
        return Path(shutil.copytree(source, tmp_path / source.parent.name / source.name))

    return copy_of


@pytest.mark.parametrize(
    ("target", "machine", "cpus"), [("arm64", "aarch64", ARM_CPUS), ("x86", "x86_64", X86_CPUS)], ids=["arm64", "x86"]
)
def test_every_mode_passed_on_every_cpu_inside_the_device_image(
    build: Callable[[str], Path], target: str, machine: str, cpus: list[str]
) -> None:
    manifest = read_manifest(build(target))
    assert [mode.name for mode in manifest.modes] == ["fp32", "int8-ptq"]
    for mode in manifest.modes:
        assert mode.supported, mode.reason
        assert [evidence.cpu for evidence in mode.evidence] == cpus
        for evidence in mode.evidence:
            assert (evidence.verdict, evidence.reason) == ("passed", "")
            assert (evidence.machine, evidence.place) == (machine, "container")
            assert evidence.runner is not None
            native = evidence.cpu == "native"
            assert evidence.runner.kind == ("native" if native else "emulator")
            assert native or int(evidence.runner.version.partition(".")[0]) >= 10


@pytest.mark.parametrize(
    ("target", "fleet"), [("arm64", {"x86-fbgemm": X86_CPUS}), ("x86", {"arm64-qnnpack": ARM_CPUS})], ids=["arm64", "x86"]
)
def test_int8_gives_the_same_bits_on_every_cpu_of_both_targets(
    build: Callable[[str], Path], target: str, fleet: dict[str, list[str]]
) -> None:
    fp32, int8 = read_manifest(build(target)).modes
    assert {record.target: [item.cpu for item in record.evidence] for record in int8.fleet} == fleet
    executed = [*int8.evidence, *(item for record in int8.fleet for item in record.evidence)]
    assert sorted(item.cpu for item in executed) == sorted(ARM_CPUS + X86_CPUS)
    assert {item.machine for item in executed} == {"aarch64", "x86_64"}
    assert len({item.outputs_sha256 for item in executed}) == 1
    assert (int8.exact, fp32.exact) == (True, False)
    assert int8.quantization is not None
    level = int8.evidence[0].graph_optimization_level
    assert int8.quantization.optimization_levels[str(level)] == int8.evidence[0].outputs_sha256
    # Without fusing, ONNX Runtime computes between Dequantize and Quantize in float: the level that was proved matters.
    assert int8.quantization.optimization_levels["disabled"] != int8.evidence[0].outputs_sha256
    with connect() as engine:
        assert [left.name for left in find_engine_leftovers(engine) if left.kind == "image"] == []


def test_torchs_own_arm_qconfig_saturates_on_haswell_and_is_not_called_exact(
    build: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    """8-bit activations with 8-bit weights: what the profile's refinements are for."""
    profile = tmp_path / "plain.toml"
    text = (Path(__file__).parents[3] / "targets" / "x86-fbgemm.toml").read_text(encoding="utf-8")
    plain = re.sub(r"^options = \[.*?^\]$", 'options = ["8-bit-activations"]', text, flags=re.DOTALL | re.MULTILINE)
    profile.write_text(plain, encoding="utf-8")
    options = ("--weights", "random", "--input-size", "64", "--calibration", str(pictures), "--calibration-images", "16")
    client, tag = docker.from_env(), "edge-bundler-test/good:1"
    image = read_manifest(build("x86")).image
    assert image is not None
    client.images.get(image.reference).tag("edge-bundler-test/good", "1")
    good = client.images.get(tag).id
    failing = ("--mode", "int8-ptq", *options, "--tag", tag)
    bundler("bundle", "resnet18", "--target", str(profile), *failing, "--output", str(tmp_path), code=8)
    assert client.images.get(tag).id == good  # an image that failed takes no name
    with connect() as engine:
        assert [left.name for left in find_engine_leftovers(engine) if left.kind == "image"] == []
    client.images.remove(tag)
    (mode,) = read_manifest(tmp_path / "x86-fbgemm" / "resnet18.failed").modes
    assert not mode.exact
    assert "products saturate on processors without VNNI" in mode.exact_reason
    bits = {item.cpu: item.outputs_sha256 for item in mode.evidence}
    assert bits["Haswell"] != bits["native"]
    assert mode.fleet == ()


def test_emulated_cpus_are_the_ones_that_were_asked_for(build: Callable[[str], Path]) -> None:
    features = {item.cpu: set(item.cpu_features) for item in read_manifest(build("arm64")).modes[1].evidence}
    assert "ASIMDDP" not in features["cortex-a53"] | features["cortex-a72"]
    assert "ASIMDDP" in features["cortex-a76"]
    features = {item.cpu: set(item.cpu_features) for item in read_manifest(build("x86")).modes[1].evidence}
    assert "AVX2" in features["Haswell"]
    assert "AVX2" not in features["Nehalem"]


def test_the_golden_outputs_are_informative(build: Callable[[str], Path]) -> None:
    golden = build("arm64") / "golden"
    outputs, reference = np.load(golden / "int8-ptq.npy"), np.load(golden / "reference.npy")
    assert reference.std(axis=0).mean() > 0.1  # the pictures differ: random weights are made to spread logits by about 2
    assert len(np.unique(outputs)) > 32


def test_the_engine_holds_the_image_of_the_manifest(build: Callable[[str], Path]) -> None:
    image = read_manifest(build("arm64")).image
    assert image is not None
    held = docker.from_env().images.get(image.reference)
    assert held.id == image.digest
    assert held.attrs["Architecture"] == "arm64"
    assert held.attrs["Config"]["User"] == "10001:10001"


def test_verify_passes_again_and_changes_no_byte(build: Callable[[str], Path]) -> None:
    bundle = build("arm64")
    archive = bundle.with_name("mobilenet_v2.tar.gz")
    before = {path: sha256_of(path) for path in [archive, *bundle.rglob("*")] if path.is_file()}
    run = bundler("verify", "--target", "arm64", "--output", str(bundle.parents[1]), "--json")
    (document,) = json.loads(run.stdout)
    assert document["verdict"] == "passed"
    assert document["manifest_rewritten"] is False
    assert before == {path: sha256_of(path) for path in [archive, *bundle.rglob("*")] if path.is_file()}


def test_verify_adds_the_evidence_that_a_build_without_an_engine_could_not_have(pictures: Path, tmp_path: Path) -> None:
    options = ("--weights", "random", "--input-size", "64", "--calibration", str(pictures), "--calibration-images", "16")
    nowhere = f"unix://{tmp_path}/nothing.sock"
    bundler(
        *("bundle", "mobilenet_v2", "--target", "arm64", "--mode", "int8-ptq", *options, "--output", str(tmp_path)),
        code=3,
        DOCKER_HOST=nowhere,
    )
    bundle = tmp_path / "arm64-qnnpack" / "mobilenet_v2"
    assert [item.verdict for item in read_manifest(bundle).modes[0].evidence] == ["not_run"] * 4
    bundler("verify", "--target", "arm64", str(bundle))
    proved = read_manifest(bundle)
    assert proved.verdict == "passed"
    assert proved.modes[0].supported
    assert proved.image is not None


def test_a_model_that_computes_something_else_fails_and_the_record_says_so(copy: Callable[[str], Path]) -> None:
    bundle = copy("x86")
    _scale_a_weight(bundle / "models" / "int8-ptq.onnx")
    document = json.loads((bundle / "runner.json").read_text())
    document["files"]["models/int8-ptq.onnx"] = sha256_of(bundle / "models" / "int8-ptq.onnx")
    (bundle / "runner.json").write_text(json.dumps(document))
    write_checksums(bundle)
    assert "models/int8-ptq.onnx" in bundler("verify", "--target", "x86", str(bundle), code=11).stderr
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["modes"][1]["onnx"]["sha256"] = document["files"]["models/int8-ptq.onnx"]
    manifest["modes"][1]["onnx"]["bytes"] = (bundle / "models" / "int8-ptq.onnx").stat().st_size
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    write_checksums(bundle)  # now only an execution shows it
    run = bundler("verify", "--target", "x86", str(bundle), code=8)
    assert "quantization steps from the expected one" in run.stdout
    assert "recorded as passed, now failed" in run.stderr
    assert not read_manifest(bundle).modes[1].supported


def _scale_a_weight(path: Path) -> None:
    model = onnx.load(path)
    read = {node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    tensor = next(item for item in model.graph.initializer if item.name in read and item.data_type == onnx.TensorProto.INT8)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((values // 2).astype(np.int8), tensor.name))
    onnx.save(model, path)


def test_the_bundles_dockerfile_rebuilds_an_image_that_passes(build: Callable[[str], Path]) -> None:
    bundle, client = build("arm64"), docker.from_env()
    manifest = read_manifest(bundle)
    assert manifest.image is not None
    image, _ = client.images.build(
        path=str(bundle),
        tag="edge-bundler-test:rebuilt",
        platform="linux/arm64",
        buildargs={"BASE_IMAGE": manifest.image.reference},
        rm=True,
    )
    assert image.id is not None
    try:
        output = client.containers.run(
            image,
            ["selftest", "--json"],
            platform="linux/arm64",
            network_mode="none",
            remove=True,
            environment={"QEMU_CPU": "cortex-a53"},
        )
        assert json.loads(output)["verdict"] == "passed"
    finally:
        client.images.remove(image.id, force=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_an_interrupted_proof_leaves_no_container_and_no_file(copy: Callable[[str], Path], number: int) -> None:
    bundle = copy("arm64")
    before = sorted(bundle.parent.rglob("*"))
    with subprocess.Popen(
        [BUNDLER, "verify", "--target", "arm64", str(bundle)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        _wait_for(lambda: _containers_of(process.pid))
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert not _containers_of(process.pid)
    assert sorted(bundle.parent.rglob("*")) == before


def test_an_engine_that_dies_half_way_is_an_error_and_not_a_traceback(copy: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = copy("x86")
    before = {path: sha256_of(path) for path in bundle.rglob("*") if path.is_file()}
    with (
        _Relay(tmp_path / "engine.sock") as relay,
        subprocess.Popen(
            [BUNDLER, "verify", "--target", "x86", str(bundle)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "DOCKER_HOST": f"unix://{relay.path}"},
        ) as process,
    ):
        _wait_for(lambda: _containers_of(process.pid))
        relay.cut()
        _, stderr = process.communicate(timeout=120)
    _remove_what_is_left_of(process.pid)  # the program could not reach the engine any more to remove it
    assert process.returncode == 9, stderr
    assert "error:" in stderr
    assert "next:" in stderr
    assert "Traceback" not in stderr
    assert before == {path: sha256_of(path) for path in bundle.rglob("*") if path.is_file()}


def _containers_of(pid: int) -> list[Any]:
    """Return the containers of one command: other tests run some at the same time."""
    found: list[Any] = docker.from_env().containers.list(all=True, filters={"label": OWNER_LABEL})
    return [container for container in found if getattr(Owner.parse(container.labels[OWNER_LABEL]), "pid", None) == pid]


def _remove_what_is_left_of(pid: int) -> None:
    with connect() as engine:
        left = [item for item in find_engine_leftovers(engine) if item.alive is False]
        for item in left:
            remove_engine_leftover(engine, item)
    kinds = {item.kind for item in left if item.kind == "container" or f".{pid}." in item.name}
    assert kinds == {"container", "image"}  # as `bundler doctor --clean` finds them


def _wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not begin"
        time.sleep(0.1)


class _Relay:
    """Passes connections on to the real engine's socket, until it is cut: then the engine is gone, for this client."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._server = socket.socket(socket.AF_UNIX)
        self._ends: list[socket.socket] = []
        self._cut = False

    def __enter__(self) -> Self:
        self._server.bind(str(self.path))
        self._server.listen()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.cut()

    def cut(self) -> None:
        self._cut = True
        self.path.unlink(missing_ok=True)
        for end in [self._server, *self._ends]:
            with contextlib.suppress(OSError):  # it was closed already
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        while not self._cut:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            engine = socket.socket(socket.AF_UNIX)
            engine.connect("/var/run/docker.sock")
            self._ends += [client, engine]
            for source, sink in ((client, engine), (engine, client)):
                threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return
