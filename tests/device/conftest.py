"""A tiny real bundle: the device program, ONNX models of a few hundred weights, and golden outputs of ONNX Runtime here."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from bundler.packaging.device_program import write_device_program

STEP = 0.4
CLASSES = 10

# The output of the tiny detector for an image that begins with 1: centre x and y, width, height, objectness, two classes.
ROWS = np.array(
    [
        [2, 2, 4, 4, 1, 0.75, 0],
        [2.5, 2, 4, 4, 1, 0.5, 0],  # overlaps the first by 14/18
        [2.5, 2, 4, 4, 1, 0, 0.625],  # so does this one, of the other class
        [7, 7, 4, 4, 0.5, 0.75, 0.9375],  # both classes, and half outside
        [4, 4, 2, 2, 0.5, 0.5, 0],  # scores 0.25, which is not above 0.25
        [6, 2, 4, 4, 0.0625, 1, 1],
    ],
    np.float32,
)


@dataclass(frozen=True, kw_only=True)
class TinyBundle:
    """A bundle in a folder of its own that a test may spoil; `seal` makes the checksums fit again."""

    root: Path

    @property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads((self.root / "runner.json").read_text())
        return config

    def configure(self, config: dict[str, Any]) -> None:
        (self.root / "runner.json").write_text(json.dumps(config))

    def seal(self) -> None:
        config = self.config
        config["files"] = {name: hashlib.sha256((self.root / name).read_bytes()).hexdigest() for name in config["files"]}
        self.configure(config)

    def change_program(self, module: str, old: str, new: str) -> None:
        """Replace some text in a module of the device program."""
        path = self.root / "device.pyz"
        with zipfile.ZipFile(path) as archive:
            sources = {name: archive.read(name).decode() for name in archive.namelist()}
        assert old in sources[module]
        sources[module] = sources[module].replace(old, new)
        with zipfile.ZipFile(path, "w") as archive:
            for name, source in sources.items():
                archive.writestr(name, source)
        self.seal()

    def save(self, name: str, array: np.ndarray) -> None:
        np.save(self.root / name, array)
        self.seal()

    def load(self, name: str) -> np.ndarray:
        array: np.ndarray = np.load(self.root / name)
        return array

    def run(
        self, *arguments: str, program: tuple[str, ...] = (sys.executable,), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        command = [*program, str(self.root / "device.pyz"), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120, check=False
        )

    def selftest(self, *arguments: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.run("selftest", "--json", *arguments).stdout)
        return document


@pytest.fixture
def bundle(tmp_path: Path) -> TinyBundle:
    root = empty_bundle(tmp_path)
    random = np.random.default_rng(7)
    weights = random.normal(size=(192, CLASSES)).astype(np.float32)
    inputs = random.normal(size=(4, 3, 8, 8)).astype(np.float32)
    save_classifier(root / "models/fp32.onnx", weights, step=None)
    save_classifier(root / "models/int8-ptq.onnx", weights, step=STEP)
    return finished_bundle(root, inputs, task="classification", output="logits", step=STEP)


@pytest.fixture
def detector(tmp_path: Path) -> TinyBundle:
    """A detector of six boxes and two classes; its INT8 mode misplaces one box and loses a quarter of the objectness."""
    root = empty_bundle(tmp_path)
    inputs = np.zeros((4, 3, 8, 8), np.float32)
    inputs[:, 0, 0, 0] = [1, 0.96875, 0.9375, 0.90625]
    worse = ROWS * np.array([1, 1, 1, 1, 0.75, 1, 1], np.float32)
    worse[2, 0] += 2
    save_detector(root / "models/fp32.onnx", ROWS)
    save_detector(root / "models/int8-ptq.onnx", worse)
    return finished_bundle(root, inputs, task="detection", output="detections", step=None)


def empty_bundle(folder: Path) -> Path:
    root = folder / "bundle"
    (root / "models").mkdir(parents=True)
    (root / "golden").mkdir()
    write_device_program(root)
    return root


def finished_bundle(root: Path, inputs: np.ndarray, *, task: str, output: str, step: float | None) -> TinyBundle:
    """Write golden files and runner.json around the models."""
    save_integer_model(root / "golden/known-answer.onnx", root / "golden")
    fp32, int8 = (outputs_of(root / f"models/{mode}.onnx", inputs) for mode in ("fp32", "int8-ptq"))
    np.save(root / "golden/inputs.npy", inputs)
    np.save(root / "golden/fp32.npy", fp32)
    np.save(root / "golden/int8-ptq.npy", int8)
    np.save(root / "golden/fp32-1.npy", fp32[:1])
    sqnr = decibels(fp32, int8) if task == "classification" else decibels(fp32[..., 4:], int8[..., 4:])
    int8_mode = {"name": "int8-ptq", "model": "models/int8-ptq.onnx", "expected": "golden/int8-ptq.npy", "samples": 4}
    fp32_mode = {"name": "fp32", "model": "models/fp32.onnx", "expected": "golden/fp32-1.npy", "samples": 1}
    tiny = TinyBundle(root=root)
    tiny.configure(
        {
            "schema": "edge-bundler/runner/2",
            "bundle": "tiny-x86-fbgemm",
            "task": task,
            "input": "image",
            "output": output,
            "graph_optimization_level": "all",
            "onnxruntime_minimum": "1.16",
            "python_minimum": "3.10",
            "golden": {"inputs": "golden/inputs.npy", "reference": "golden/fp32.npy"},
            "known_answer": {
                "model": "golden/known-answer.onnx",
                "inputs": "golden/known-answer-inputs.npy",
                "expected": "golden/known-answer-expected.npy",
            },
            "modes": [
                {**int8_mode, "step": step, "expected_sqnr_db": sqnr},
                {**fp32_mode, "step": None, "expected_sqnr_db": None},
            ],
            "tolerances": {"max_steps": 8, "sqnr_loss_db": 1.0, "fp32_min_sqnr_db": 80.0},
            "files": {str(path.relative_to(root)): "" for path in sorted(root.rglob("*")) if path.is_file()},
        }
    )
    tiny.seal()
    return tiny


def decibels(signal: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10((signal.astype(float) ** 2).sum() / ((signal.astype(float) - other) ** 2).sum()))


def save_classifier(path: Path, weights: np.ndarray, step: float | None, output: str = "logits") -> None:
    """Write image [N,3,8,8] → Flatten → MatMul → logits [N,10], rounded to `step` where one is given."""
    product = "product" if step else output
    nodes = [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "weights"], [product])]
    constants = [numpy_helper.from_array(weights, "weights")]
    if step:
        constants.append(numpy_helper.from_array(np.array(step, np.float32), "step"))
        constants.append(numpy_helper.from_array(np.array(0, np.int8), "zero"))
        nodes += [
            helper.make_node("QuantizeLinear", ["product", "step", "zero"], ["quantized"]),
            helper.make_node("DequantizeLinear", ["quantized", "step", "zero"], [output]),
        ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 8, 8])
    logits = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", weights.shape[1]])
    save_graph(path, nodes, [image], [logits], constants)


def save_detector(path: Path, rows: np.ndarray, output: str = "detections") -> None:
    """Write image [N,3,8,8] → detections [N,boxes,5+classes]: the rows, their objectness times the image's first number."""
    weights, constant = np.zeros((192, *rows.shape), np.float32), rows.copy()
    weights[0, :, 4] = rows[:, 4]
    constant[:, 4] = 0
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["product"]),
        helper.make_node("Reshape", ["product", "shape"], ["objectness"]),
        helper.make_node("Add", ["objectness", "constant"], [output]),
    ]
    constants = [
        numpy_helper.from_array(weights.reshape(192, -1), "weights"),
        numpy_helper.from_array(np.array([-1, *rows.shape]), "shape"),
        numpy_helper.from_array(constant, "constant"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 8, 8])
    detections = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", *rows.shape])
    save_graph(path, nodes, [image], [detections], constants)


def save_integer_model(path: Path, folder: Path) -> None:
    """Write a MatMulInteger whose answer numpy's int32 arithmetic gives independently of ONNX Runtime.

    Seven bits on the left: x86 without VNNI adds u8 x s8 products in pairs with saturation, which eight bits reach.
    """
    random = np.random.default_rng(11)
    left = random.integers(0, 128, size=(16, 64), dtype=np.uint8)
    right = random.integers(-128, 128, size=(64, 8), dtype=np.int8)
    node = helper.make_node("MatMulInteger", ["left", "right"], ["product"])
    inputs = [helper.make_tensor_value_info("left", TensorProto.UINT8, [16, 64])]
    outputs = [helper.make_tensor_value_info("product", TensorProto.INT32, [16, 8])]
    save_graph(path, [node], inputs, outputs, [numpy_helper.from_array(right, "right")])
    np.save(folder / "known-answer-inputs.npy", left)
    np.save(folder / "known-answer-expected.npy", left.astype(np.int32) @ right.astype(np.int32))


def save_graph(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any]) -> None:
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def outputs_of(path: Path, inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": picture[None]})[0] for picture in inputs])


def mode_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    return next(mode for mode in document["modes"] if mode["name"] == name)


def spoil(bundle: TinyBundle, mode: str, **changes: Any) -> None:
    config = bundle.config
    mode_of(config, mode).update(changes)
    bundle.configure(config)


def other_model(bundle: TinyBundle, mode: str, *, change: float, step: float | None) -> None:
    """Replace a mode's model by one whose first class is `change` times as strong."""
    random = np.random.default_rng(7)
    weights = random.normal(size=(192, 10)).astype(np.float32)
    weights[:, 0] *= change
    save_classifier(bundle.root / f"models/{mode}.onnx", weights, step)
    bundle.seal()
