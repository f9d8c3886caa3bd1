"""A small complete bundle with placeholder models, which takes no time to build."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bundler.device.runner_json import RUNNER_SCHEMA
from bundler.files.sha256 import sha256_of
from bundler.manifest import read_manifest
from bundler.packaging.device_program import write_device_program
from bundler.packaging.documents import write_documents
from bundler.targets import find_target

DATA = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="session")
def whole_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle that is valid except for the contents of its models; tests change copies of it."""
    bundle = tmp_path_factory.mktemp("whole") / "mobilenet_v2"
    for folder in ("models", "golden"):
        (bundle / folder).mkdir(parents=True)
    manifest = read_manifest(DATA)
    modes = []
    for mode in manifest.modes:
        path = bundle / mode.onnx.path
        path.write_bytes(mode.name.encode())
        record = mode.onnx.model_copy(update={"sha256": sha256_of(path), "bytes": path.stat().st_size})
        modes.append(mode.model_copy(update={"onnx": record}))
        np.save(bundle / "golden" / f"{mode.name}.npy", np.zeros((2, 10), np.float32))
    for name in ("inputs", "reference", "known-answer-inputs", "known-answer-expected"):
        np.save(bundle / "golden" / f"{name}.npy", np.zeros((2, 3, 4, 4), np.float32))
    (bundle / "golden" / "known-answer.onnx").write_bytes(b"known")
    write_device_program(bundle)
    files = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    document = {
        "schema": RUNNER_SCHEMA,
        "bundle": manifest.bundle,
        "input": manifest.model.input.name,
        "output": manifest.model.output.name,
        "task": manifest.model.task,
        "graph_optimization_level": "all",
        "onnxruntime_minimum": "1.16",
        "python_minimum": "3.10",
        "golden": {"inputs": "golden/inputs.npy", "reference": "golden/reference.npy"},
        "known_answer": {
            "model": "golden/known-answer.onnx",
            "inputs": "golden/known-answer-inputs.npy",
            "expected": "golden/known-answer-expected.npy",
        },
        "modes": [
            {
                "name": mode.name,
                "model": mode.onnx.path,
                "expected": f"golden/{mode.name}.npy",
                "samples": 2,
                "step": None,
                "expected_sqnr_db": None,
            }
            for mode in modes
        ],
        "tolerances": {"max_steps": 8, "sqnr_loss_db": 1.0, "fp32_min_sqnr_db": 80.0},
        "files": {name: sha256_of(bundle / name) for name in files},
    }
    (bundle / "runner.json").write_text(json.dumps(document, indent=2) + "\n")
    written = manifest.model_copy(update={"modes": tuple(modes)})
    write_documents(bundle, written, find_target("arm64"), image_reference="mobilenet_v2:arm64-qnnpack")
    return bundle


@pytest.fixture
def bundle(whole_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(whole_bundle, tmp_path / "dist" / "mobilenet_v2"))
