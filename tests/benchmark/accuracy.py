"""`make bench MODEL=… WEIGHTS=… CALIBRATION=… DATA=…`: our INT8 beside ONNX Runtime's own static quantization, in one run.

Each is calibrated with the same pictures and measured on the same labelled ones, on this machine and as Haswell, where 8-bit
products saturate (`--cpu`): top-1, what it lost to FP32, and SQNR of the logits. `--ill-scaled SEED` multiplies the channels
between two convolutions by factors from 0.05 to 20 first, which changes nothing in float (issue 4).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from bundler import console
from bundler.datasets import Preprocessing, load_pictures
from bundler.export.agreement import sqnr_db
from bundler.export.graph import INPUT
from bundler.export.onnx_export import export_onnx
from bundler.labelled_pictures import LabelledPictures, load_validation
from bundler.models.checkpoints import load_weights
from bundler.models.registry import find_model, load_parser
from bundler.quantization import calibrate, convert, equalize_channels, quantized_engine, round_weights
from bundler.quantization.equalization import channel_streams
from bundler.targets import find_target

Logits = NDArray[np.float32]

# Runs a graph on a batch of inputs, as a process of its own, so that an emulator can run it.
_RUN = """
import sys, numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.log_severity_level = 3
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
inputs = np.load(sys.argv[2])
np.save(sys.argv[3], np.concatenate([session.run(None, {"image": inputs[i:i+1]})[0] for i in range(len(inputs))]))
"""


class _Pictures(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, pictures: Logits) -> None:
        self._left: Iterator[Logits] = iter(np.split(pictures, len(pictures)))

    def get_next(self) -> dict[str, Logits] | None:
        picture = next(self._left, None)
        return None if picture is None else {INPUT: picture}


@click.command()
@click.argument("model")
@click.option("--weights", required=True)
@click.option("--num-classes", type=int, default=1000)
@click.option("--input-size", type=int)
@click.option("--calibration", type=click.Path(path_type=Path), required=True)
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--pictures", type=int, help="Measure on this many of the labelled pictures.")
@click.option("--ill-scaled", type=int, metavar="SEED")
@click.option("--cpu", "cpus", multiple=True, help="Measure as this CPU of QEMU too, such as Haswell.")
@click.option("--json", "as_json", is_flag=True)
def main(
    *,
    model: str,
    weights: str,
    num_classes: int,
    input_size: int | None,
    calibration: Path,
    data: Path,
    pictures: int | None,
    ill_scaled: int | None,
    cpus: tuple[str, ...],
    as_json: bool,
) -> None:
    warnings.simplefilter("ignore")
    _, variant = find_model(model)
    parser = load_parser(variant)
    preprocessing = Preprocessing(
        resize=input_size or variant.resize, crop=input_size or variant.crop, interpolation=variant.interpolation
    )
    loaded = load_weights(weights, variant, parser=parser, num_classes=num_classes, pictures=lambda: np.empty(0), seed=0)
    labelled = load_validation(data, preprocessing, num_classes=loaded.num_classes)
    calibrating = load_pictures(calibration, preprocessing, count=64, seed=0).pictures
    inputs, labels = _measured_on(labelled, pictures or len(labelled))
    network = parser(weights=loaded.state_dict, num_classes=loaded.num_classes)
    if ill_scaled is not None:
        scale_ill(network, torch.from_numpy(inputs[:1]), seed=ill_scaled)
    with tempfile.TemporaryDirectory(prefix="edge-bundler-bench-") as text:
        folder = Path(text)
        graphs = {"fp32": folder / "fp32.onnx"}
        export_onnx(network, torch.from_numpy(inputs[:2]), graphs["fp32"], opset=13, quantized=False)
        graphs |= _ours(network, parser, loaded.num_classes, calibrating, folder)
        graphs |= _theirs(graphs["fp32"], calibrating, folder)
        np.save(folder / "inputs.npy", inputs)
        measured = []
        reference = _run(graphs["fp32"], folder, "native")
        for cpu in ("native", *cpus):
            for name, path in graphs.items():
                logits = reference if name == "fp32" else _run(path, folder, cpu)
                measured.append(_figures(name, cpu, logits, reference, labels))
    if as_json:
        console.json_result(measured)
    else:
        rows = [
            (row["what"], row["cpu"], f"{row['top1']:.2f} %", f"{row['drop']:+.2f}", f"{row['sqnr_db']:.2f}")
            for row in measured
        ]
        console.table(("what", "cpu", "top-1", "points lost", "SQNR dB"), rows)


def scale_ill(model: nn.Module, sample: torch.Tensor, *, seed: int) -> None:
    """Multiply the channels between two layers by factors from 0.05 to 20, in place, and divide by them behind."""
    generator = torch.Generator().manual_seed(seed)
    for stream in channel_streams(model, sample):
        if len(stream.writers) == len(stream.readers) == 1:
            stream.divide(torch.exp(torch.empty(len(stream.writers[0].weight)).uniform_(-3, 3, generator=generator)))


def _measured_on(labelled: LabelledPictures, count: int) -> tuple[Logits, NDArray[np.int64]]:
    images, labels = next(labelled.batches(count, seed=0))
    return images, labels


def _ours(network: nn.Module, parser: Any, num_classes: int, calibrating: Logits, folder: Path) -> dict[str, Path]:
    graphs = {}
    batches = torch.from_numpy(calibrating).split(8)
    equalize_channels(network, batches)
    for alias in ("x86", "arm64"):
        target = find_target(alias).quantization
        prepared = parser(weights=network.state_dict(), num_classes=num_classes, quantize=True, target=target)
        calibrate(prepared, batches)
        round_weights(prepared, batches)
        converted = convert(prepared, target)
        path = folder / f"{alias}.onnx"
        with quantized_engine(target.engine):
            export_onnx(converted, batches[0][:2], path, opset=13, quantized=True)
        graphs[f"ours for {alias}"] = path
    return graphs


def _theirs(fp32: Path, calibrating: Logits, folder: Path) -> dict[str, Path]:
    """Quantize as ONNX Runtime's guide says: pre-processed, QDQ, uint8 activations and int8 weights."""
    graphs = {}
    prepared = folder / "pre.onnx"
    quant_pre_process(str(fp32), str(prepared))
    for method in (CalibrationMethod.MinMax, CalibrationMethod.Entropy):
        for reduce_range in (False, True):
            name = f"quantize_static {method.name}{' reduce_range' if reduce_range else ''}"
            path = folder / f"{method.name}-{reduce_range}.onnx"
            quantize_static(
                str(prepared),
                str(path),
                _Pictures(calibrating),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=method,
            )
            graphs[name] = path
    return graphs


def _run(graph: Path, folder: Path, cpu: str) -> Logits:
    outputs = folder / "outputs.npy"
    prefix = [] if cpu == "native" else [str(shutil.which("qemu-x86_64-static")), "-cpu", cpu]
    command = [*prefix, sys.executable, "-c", _RUN, str(graph), str(folder / "inputs.npy"), str(outputs)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    logits: Logits = np.load(outputs)
    return logits


def _figures(name: str, cpu: str, logits: Logits, reference: Logits, labels: NDArray[np.int64]) -> dict[str, Any]:
    top1, before = (100 * float((values.argmax(1) == labels).mean()) for values in (logits, reference))
    return {"what": name, "cpu": cpu, "top1": top1, "drop": before - top1, "sqnr_db": sqnr_db(reference, logits)}


if __name__ == "__main__":
    main()
