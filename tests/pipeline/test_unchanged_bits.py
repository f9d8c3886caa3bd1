"""The digests of what builds give: a change of the code that is not meant to change them shows here.

Where a change is meant to, `python tests/pipeline/test_unchanged_bits.py` writes the table again. The outputs' digests change
only with the numbers; the ONNX file's also with its writer, its names and the order of its nodes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "tests" / "fixtures" / "digests.json"
CELLS = (
    ("mobilenet_v2", "x86"),
    ("mobilenet_v2", "arm64"),
    ("resnet18", "x86"),
    ("densenet121", "arm64"),
    ("efficientnet_b0", "x86"),
    ("mobilenet_v3_small", "arm64"),
    ("yolov5n", "x86"),
)
OPTIONS = ("--mode", "int8-ptq", "--weights", "random", "--num-classes", "4", "--calibration-images", "4")


def build(model: str, target: str, folder: Path) -> dict[str, str]:
    """Build without an engine, and return the digests of the INT8 graph, of its outputs, and of FP32's."""
    size = "64" if model.startswith("yolo") else "32"
    scope = ("--int8-scope", "whole") if model.startswith("yolo") else ()
    command = [
        sys.executable,
        "-c",
        "from bundler.cli import main; main()",
        "bundle",
        model,
        "--target",
        _one_cpu(target, folder),
    ]
    done = subprocess.run(
        [*command, *OPTIONS, *scope, "--input-size", size, "--output", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        cwd=ROOT,
        env={**os.environ, "DOCKER_HOST": "unix:///nonexistent/engine.sock"},
    )
    assert done.returncode in (0, 3), done.stderr  # 3: nothing could be executed here
    (manifest,) = folder.glob(f"*/{model}/manifest.json")
    golden = manifest.parent / "golden"
    outputs = np.load(golden / "int8-ptq.npy")
    assert len(np.unique(outputs)) > 8  # else a digest would tell nothing
    return {
        "onnx": _sha256((manifest.parent / "models" / "int8-ptq.onnx").read_bytes()),
        "int8 outputs": _sha256(outputs.tobytes()),
        "fp32 outputs": _sha256(np.load(golden / "reference.npy").tobytes()),
    }


def _one_cpu(target: str, folder: Path) -> str:
    """Write the target's profile with one CPU: what is executed changes no digest."""
    name = {"x86": "x86-fbgemm", "arm64": "arm64-qnnpack"}[target]
    text = (ROOT / "targets" / f"{name}.toml").read_text(encoding="utf-8")
    text = re.sub(r"^also_verify_on = .*$", "also_verify_on = []", text, flags=re.MULTILINE)
    head, *cpus = re.split(r"^(?=\[\[verification\.cpus\]\])", text, flags=re.MULTILINE)
    path = folder / "one-cpu.toml"
    path.write_text(head + cpus[0], encoding="utf-8")
    return str(path)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(("model", "target"), CELLS, ids=[f"{model}-{target}" for model, target in CELLS])
def test_the_bits_are_those_of_the_table(model: str, target: str, tmp_path: Path) -> None:
    expected: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    assert build(model, target, tmp_path) == expected[f"{model} for {target}"]


if __name__ == "__main__":
    digests = {}
    for model, target in CELLS:
        with tempfile.TemporaryDirectory() as folder:
            digests[f"{model} for {target}"] = build(model, target, Path(folder))
    TABLE.write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")
