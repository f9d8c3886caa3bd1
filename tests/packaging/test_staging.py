"""What the device executes, laid out in a folder; on a full disk the failure says so."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bundler.device.numerics import sqnr_db
from bundler.device.runner_json import RUNNER_SCHEMA, ModeName
from bundler.files.sha256 import sha256_of
from bundler.graphs.exported_graph import ExportedGraph
from bundler.graphs.passes.logits_rounding import LogitsRounding
from bundler.packaging.device_program import device_program
from bundler.packaging.staging import GoldenMode, StagedBundle, stage
from bundler.targets import find_target


def mode(directory: Path, name: str, step: float | None) -> GoldenMode:
    path = directory / "models" / f"{name}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(name)
    graph = ExportedGraph(
        path=path,
        sha256=sha256_of(path),
        bytes=path.stat().st_size,
        opset=13,
        quantized=step is not None,
        quantize_nodes=1,
        dequantize_nodes=1,
        float_operators={},
        rounding=None if step is None else LogitsRounding(step=step, lowest=-128 * step, highest=127 * step),
    )
    outputs = np.random.default_rng(0).normal(size=(4, 10)).astype(np.float32)
    return GoldenMode(graph=graph, outputs=outputs)


def staged(directory: Path, *, size: int = 8) -> StagedBundle:
    generator = np.random.default_rng(1)
    return stage(
        directory,
        identifier="tiny-x86-fbgemm",
        target=find_target("x86"),
        task="classification",
        inputs=generator.normal(size=(4, 3, size, size)).astype(np.float32),
        reference=generator.normal(size=(4, 10)).astype(np.float32),
        modes={"int8-ptq": mode(directory, "int8-ptq", 0.25), "fp32": mode(directory, "fp32", None)},
    )


def test_every_file_of_the_image_is_there_and_has_its_checksum(tmp_path: Path) -> None:
    bundle = staged(tmp_path)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert set(bundle.files) == found
    document = json.loads((tmp_path / "runner.json").read_text())
    assert document["files"] == {name: sha256_of(tmp_path / name) for name in found - {"runner.json"}}
    assert (tmp_path / "device.pyz").read_bytes() == device_program()


def test_the_device_gets_its_bounds_and_fewer_images_for_float(tmp_path: Path) -> None:
    bundle, verification = staged(tmp_path), find_target("x86").verification
    document = json.loads((tmp_path / "runner.json").read_text())
    assert document["schema"] == RUNNER_SCHEMA
    assert document["tolerances"] == verification.tolerances.model_dump()
    assert document["task"] == "classification"
    assert [(item["name"], item["step"]) for item in document["modes"]] == [("int8-ptq", 0.25), ("fp32", None)]
    reference, outputs = (np.load(tmp_path / f"golden/{name}.npy") for name in ("reference", "int8-ptq"))
    assert [item["expected_sqnr_db"] for item in document["modes"]] == [sqnr_db(reference, outputs), None]
    for item in document["modes"]:
        assert len(np.load(tmp_path / item["expected"])) == item["samples"] == bundle.samples[item["name"]]
    assert bundle.samples == {"int8-ptq": verification.golden_inputs, "fp32": verification.golden_inputs_fp32}


def test_what_computes_mostly_in_float_runs_as_few_pictures_as_float(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    int8 = mode(tmp_path, "int8-ptq", 0.25)
    backbone = replace(int8, graph=replace(int8.graph, float_operators={"FusedConv": 23}, rounding=None))
    numbers = np.random.default_rng(1).normal(size=(4, 10)).astype(np.float32)
    pictures = np.zeros((4, 3, 2, 2), np.float32)
    modes: dict[ModeName, GoldenMode] = {"int8-ptq": backbone}
    target = find_target("x86")
    bundle = stage(tmp_path, identifier="a", target=target, task="detection", inputs=pictures, reference=numbers, modes=modes)
    (item,) = json.loads((tmp_path / "runner.json").read_text())["modes"]
    few = target.verification.golden_inputs_fp32
    assert bundle.samples == {"int8-ptq": few}
    assert item["expected_sqnr_db"] == sqnr_db(numbers[:few], backbone.outputs[:few])
    assert len(np.load(tmp_path / item["expected"])) == few


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("kilobytes", [4, 64, 120, 140])
def test_a_full_disk_says_so_whatever_is_being_written(tmp_path: Path, kilobytes: int) -> None:
    """The inputs alone are 97 kB here, so that some disks are full among the arrays and some after them."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(tmp_path)], check=True)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
            staged(tmp_path, size=45)
        assert caught.value.errno == errno.ENOSPC
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
