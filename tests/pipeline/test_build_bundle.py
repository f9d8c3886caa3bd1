"""The bundle that `bundler bundle` installs without a container engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest

from bundler.files.sha256 import sha256_of
from bundler.manifest import json_schema, read_manifest
from tests.command_line import BUNDLER, NOWHERE, Run

FILES = {
    *(
        "manifest.json",
        "README.md",
        "SHA256SUMS",
        "Dockerfile",
        "compose.yaml",
        "requirements.txt",
        "device.pyz",
        "runner.json",
    ),
    *("models/fp32.onnx", "models/int8-ptq.onnx", "ledger/int8-ptq.npz", "report.html"),
    *("golden/inputs.npy", "golden/reference.npy", "golden/fp32.npy", "golden/int8-ptq.npy"),
    *("golden/known-answer.onnx", "golden/known-answer-inputs.npy", "golden/known-answer-expected.npy"),
}


def test_the_package_holds_every_file_and_the_archive_the_same(built: dict[str, Path]) -> None:
    bundle = built["arm64"]
    names = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert names == FILES | {"resnet18-arm64-qnnpack.service"}
    with tarfile.open(bundle.with_name("resnet18.tar.gz")) as archive:
        members = archive.getmembers()
        assert {member.name for member in members} == {f"resnet18-arm64-qnnpack/{name}" for name in names}
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}


def test_a_foreign_target_is_recorded_as_not_run_with_the_reason(built: dict[str, Path]) -> None:
    manifest = read_manifest(built["arm64"])
    assert manifest.verdict == "not_run"
    assert manifest.image is None
    for mode in manifest.modes:
        assert not mode.supported
        assert [evidence.verdict for evidence in mode.evidence] == ["not_run"] * 4
        assert "container engine" in mode.reason


def test_int8_of_a_foreign_target_is_executed_on_this_host_and_fp32_is_not(built: dict[str, Path]) -> None:
    fp32, int8 = read_manifest(built["arm64"]).modes
    assert fp32.fleet == ()
    (record,) = int8.fleet
    native = record.evidence[0]
    assert (record.target, native.cpu, native.verdict, native.place) == ("x86-fbgemm", "native", "passed", "host")
    executed = [item for item in record.evidence if item.outputs_sha256]
    assert {item.outputs_sha256 for item in executed} == {native.outputs_sha256}
    assert int8.exact == (len(executed) > 1)
    assert "not run on cortex-a53, cortex-a72, cortex-a76, max" in int8.exact_reason or not int8.exact


def test_every_layer_is_checked_and_the_quantization_options_are_recorded(built: dict[str, Path]) -> None:
    quantization = read_manifest(built["x86"]).modes[1].quantization
    assert quantization is not None
    assert "gptq" in quantization.refinements
    assert len(quantization.saturation) == 21  # 20 convolutions and the classifier
    assert not any(record.saturating_channels for record in quantization.saturation)
    assert [record.inputs for record in quantization.ties if record.op_type == "Add"] == [65536] * 8
    assert set(quantization.optimization_levels) == {"disabled", "basic", "extended", "all"}


def test_inspect_shows_how_far_each_layer_is_from_fp32(run: Run, built: dict[str, Path]) -> None:
    quantization = read_manifest(built["x86"]).modes[1].quantization
    assert quantization is not None
    assert len(quantization.layers) == 1 + 21 + 8 + 1  # the input, convolutions and classifier, additions, pooling
    output = run("inspect", "--layers", str(built["x86"])).stdout
    table = output[output.index("outputs dB") :].splitlines()[1:]
    for layer, row in zip(quantization.layers, table, strict=False):
        assert layer.output_sqnr_db is not None
        assert row.split()[0] == layer.name
        assert row.split()[-1] == f"{layer.output_sqnr_db:.1f}"
    assert "outputs dB" not in run("inspect", str(built["x86"])).stdout


def test_the_hosts_own_target_is_executed_natively(built: dict[str, Path]) -> None:
    manifest = read_manifest(built["x86"])
    for mode in manifest.modes:
        assert mode.supported
        native = mode.evidence[0]
        assert (native.cpu, native.verdict, native.place) == ("native", "passed", "host")
        assert native.runner is not None
        assert native.runner.kind == "native"
        assert native.machine == os.uname().machine


def test_the_manifest_follows_its_schema_and_says_what_went_in(built: dict[str, Path]) -> None:
    document = json.loads((built["x86"] / "manifest.json").read_text())
    schema = json.loads(json_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)
    assert document["model"]["weights"]["trained"] is False
    int8 = next(mode for mode in document["modes"] if mode["name"] == "int8-ptq")
    assert int8["onnx"]["sha256"] == sha256_of(built["x86"] / int8["onnx"]["path"])
    assert int8["quantization"]["calibration"]["source"] == "synthetic"
    assert int8["quantization"]["calibration"]["count"] == 8
    broken = {**document, "surprise": 1}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_a_float_mode_states_no_scope_of_int8(built: dict[str, Path]) -> None:
    assert {mode.name: mode.scope for mode in read_manifest(built["arm64"]).modes} == {"fp32": None, "int8-ptq": "whole"}


def test_the_golden_outputs_are_informative(built: dict[str, Path]) -> None:
    outputs = np.load(built["x86"] / "golden" / "reference.npy")
    assert outputs.std(axis=0).mean() > 0.1  # random weights spread the logits by about 2 over the pictures
    assert outputs.std(axis=1).mean() > 0.1


def test_graphs_are_opset_13_with_names_and_a_dynamic_batch(built: dict[str, Path]) -> None:
    for mode in ("fp32", "int8-ptq"):
        graph = onnx.load(built["x86"] / "models" / f"{mode}.onnx")
        assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 13)]
        assert [value.name for value in graph.graph.input] == ["image"]
        assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_same_inputs_give_the_same_bytes(built: dict[str, Path], run: Run, small: tuple[str, ...], tmp_path: Path) -> None:
    run("bundle", "resnet18", "--target", "arm64", *small, "--output", str(tmp_path), code=3)
    again = tmp_path / "arm64-qnnpack"
    assert sha256_of(again / "resnet18.tar.gz") == sha256_of(built["arm64"].with_name("resnet18.tar.gz"))


def test_results_go_to_stdout_and_the_rest_to_stderr(run: Run, small: tuple[str, ...], tmp_path: Path) -> None:
    arguments = ("--mode", "int8-ptq", *small, "--output", str(tmp_path), "--json")
    process = run("bundle", "resnet18", "--target", "arm64", *arguments, code=3)
    manifest = json.loads(process.stdout)
    assert [mode["name"] for mode in manifest["modes"]] == ["int8-ptq"]
    assert not (tmp_path / "arm64-qnnpack" / "resnet18" / "models" / "fp32.onnx").exists()
    assert "Calibrating with 8 synthetic images" in process.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupted_build_leaves_the_earlier_bundle_and_nothing_else(tmp_path: Path, number: int) -> None:
    place = tmp_path / "x86-fbgemm"
    earlier = place / "resnet18"
    earlier.mkdir(parents=True)
    (earlier / "manifest.json").write_text("good")
    options = ("--weights", "random", "--input-size", "224", "--calibration-images", "2000", "--output", str(tmp_path))
    with subprocess.Popen(
        [BUNDLER, "bundle", "resnet18", "--target", "x86", *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DOCKER_HOST": NOWHERE},
    ) as process:
        end = time.monotonic() + 240
        while len(list(place.iterdir())) < 2:  # the staging directory beside it
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert [path.name for path in place.iterdir()] == ["resnet18"]
    assert (earlier / "manifest.json").read_text() == "good"


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting a small disk needs root")
def test_a_full_disk_is_an_error_and_the_earlier_bundle_stays(run: Run, small: tuple[str, ...], tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path)], check=True)
    try:
        earlier = tmp_path / "arm64-qnnpack" / "resnet18"
        earlier.mkdir(parents=True)
        (earlier / "manifest.json").write_text("good")
        process = run("bundle", "resnet18", "--target", "arm64", *small, "--output", str(tmp_path), code=12)
        assert "disk is full" in process.stderr
        assert [path.name for path in earlier.parent.iterdir()] == ["resnet18"]
        assert (earlier / "manifest.json").read_text() == "good"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_place_that_is_a_file_is_refused(run: Run, small: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "dist").write_text("a file")
    process = run("bundle", "resnet18", "--target", "arm64", *small, "--output", str(tmp_path / "dist"), code=12)
    assert "--output" in process.stderr
