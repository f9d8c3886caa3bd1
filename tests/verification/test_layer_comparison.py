"""Layer-wise comparison: where torch and ONNX Runtime compute different values is counted, layer by layer."""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bundler.engines.emulation import Launch
from bundler.errors import BundleDamagedError
from bundler.manifest import LayerComparisonRecord, read_manifest
from bundler.targets import find_target
from bundler.verification.executors import HostExecutor
from bundler.verification.layer_comparison import Place, compare_layers
from tests.command_line import Run


@pytest.fixture
def bundle(built: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(built["x86"], tmp_path / "bundle")


def ledger_of(bundle: Path, tmp_path: Path) -> LayerComparisonRecord:
    executor = HostExecutor(bundle=bundle, target=find_target("x86"))
    places = [Place(name=f"ONNX Runtime, {platform.machine()}", executor=executor, launch=Launch(runner="native"))]
    return compare_layers(bundle, "int8-ptq", level="all", samples=2, places=places, workspace=tmp_path)


def test_a_bundle_holds_the_ledger_of_torch_and_this_machine(built: dict[str, Path], bundle: Path, tmp_path: Path) -> None:
    (recorded,) = [mode.ledger for mode in read_manifest(built["x86"]).modes if mode.ledger is not None]
    assert recorded.executions[0] == "torch"
    (pair,) = recorded.pairs
    layers = [tensor.layer for tensor in recorded.tensors]
    assert len(layers) > 30
    assert recorded.tensors[0].apart[0] is not None
    assert recorded.tensors[0].apart[0].equal == 3 * 64 * 64  # the picture in integers: nothing can differ yet
    counted = [tensor.apart[0] for tensor in recorded.tensors if tensor.apart[0] is not None]
    assert len(counted) == len(layers)
    parted = [tensor.layer for tensor in recorded.tensors if tensor.apart[0] and tensor.apart[0].one + tensor.apart[0].more]
    assert pair.parted == parted[0]
    assert ledger_of(bundle, tmp_path).tensors == recorded.tensors


def test_a_weight_that_changed_parts_them_where_it_is(bundle: Path, tmp_path: Path) -> None:
    before = ledger_of(bundle, tmp_path)
    path = bundle / "models" / "int8-ptq.onnx"
    model = onnx.load(path)
    convolution = [node for node in model.graph.node if node.op_type == "Conv"][10]
    dequantize = next(node for node in model.graph.node if convolution.input[1] in node.output)
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == dequantize.input[0])
    weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights).clip(-127), weights.name))
    onnx.save(model, path)
    after = ledger_of(bundle, tmp_path)
    changed = [old.layer for old, new in zip(before.tensors, after.tensors, strict=True) if old != new]
    name = convolution.name.strip("/").removesuffix("/Conv").replace("/", ".")
    assert changed[0].startswith(name)
    apart = next(tensor.apart[0] for tensor in after.tensors if tensor.layer == changed[0])
    assert apart is not None
    assert apart.more > apart.equal


def test_without_torchs_integers_it_says_so(bundle: Path, tmp_path: Path) -> None:
    (bundle / "ledger" / "int8-ptq.npz").unlink()
    with pytest.raises(BundleDamagedError, match=r"int8-ptq\.npz cannot be read"):
        ledger_of(bundle, tmp_path)


def test_explain_prints_it_as_table_and_as_json_and_writes_it_into_the_bundle(run: Run, bundle: Path) -> None:
    manifest = read_manifest(bundle)
    text = run("verify", "--target", "x86", "--explain", str(bundle)).stdout
    (ledger,) = [mode.ledger for mode in manifest.modes if mode.ledger is not None]
    assert "values that are equal / differ by one step / by more" in text
    assert all(tensor.layer in text for tensor in ledger.tensors)
    assert f"torch and {ledger.executions[1]}: first differ in {ledger.pairs[0].parted}" in text
    (document,) = json.loads(run("verify", "--target", "x86", "--explain", "--json", str(bundle)).stdout)
    assert document["ledger"]["int8-ptq"] == ledger.model_dump(mode="json")
    assert [mode.ledger for mode in read_manifest(bundle).modes if mode.ledger is not None] == [ledger]


def test_the_integers_do_not_travel_in_the_image(bundle: Path) -> None:
    files = json.loads((bundle / "runner.json").read_text(encoding="utf-8"))["files"]
    assert not [name for name in files if name.startswith("ledger/")]
    with np.load(bundle / "ledger" / "int8-ptq.npz") as stored:
        assert max(stored[name].size for name in stored.files) <= 16_384
