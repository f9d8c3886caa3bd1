"""`make bench MODEL=… WEIGHTS=… CALIBRATION=… DATA=…`: our INT8 beside ONNX Runtime's own static quantization, in one run.

Both are calibrated with the same images. On this machine all labelled images are measured: top-1, the drop from FP32, and the
SQNR of the logits, of all images together and of the median image (a few that go far beyond the calibrated range can make
almost all of the noise). On every emulated CPU of every target a part of them is measured, and the outputs are compared with
those of this machine, bit for bit. `--ill-scaled SEED` first multiplies the channels between two layers by factors from 0.05 to
20, which changes nothing in float.

A detector is INT8 as a whole in both, except for the decoding of its boxes: with the decoding in INT8, `quantize_static`'s
detects nothing. The share of boxes that FP32 and INT8 both detect is measured.
"""

from __future__ import annotations

import base64
import io
import sys
import tempfile
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from bundler import console
from bundler.data.labelled_boxes import DetectionImages
from bundler.data.labelled_images import LabelledImages
from bundler.device.detections import agreeing, shown
from bundler.device.numerics import sqnr_db
from bundler.engines.container_engine import connect
from bundler.engines.emulation import Launch
from bundler.engines.owner import temporary_reference
from bundler.files.sha256 import sha256_of
from bundler.graphs.exported_graph import INPUT
from bundler.graphs.exporter import export_onnx
from bundler.images.device_image import ImageRequest, assemble_image, loaded_image
from bundler.models.network import load_network
from bundler.models.registry import find_model
from bundler.models.specs import Task
from bundler.packaging.device_program import write_device_program
from bundler.pipeline.inputs import load_inputs
from bundler.plan import BuildJob, BuildRequest, CalibrationRequest, WeightsRequest, plan_build
from bundler.quantization import quantized_engine
from bundler.quantization.equalization import equalization_groups
from bundler.quantization.quantized_model import quantize_post_training
from bundler.targets import load_targets
from bundler.verification.executors import ContainerExecutor

Outputs = NDArray[np.float32]
Labels = NDArray[np.int64] | None
Graphs = dict[str, Path]

NATIVE = "native"
LEVEL = "all"  # graph optimization level, as the profiles' runner has it


class _Pictures(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, pictures: Outputs) -> None:
        self._left: Iterator[Outputs] = iter(np.split(pictures, len(pictures)))

    def get_next(self) -> dict[str, Outputs] | None:
        picture = next(self._left, None)
        return None if picture is None else {INPUT: picture}


@click.command()
@click.argument("model")
@click.option("--weights", required=True)
@click.option("--num-classes", type=int, default=1000)
@click.option("--input-size", type=int)
@click.option("--calibration", type=click.Path(path_type=Path), required=True)
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--emulated", type=int, default=200, show_default=True, help="Pictures on each emulated CPU; 0 for none.")
@click.option("--ill-scaled", type=int, metavar="SEED")
@click.option("--json", "as_json", is_flag=True)
def main(
    *,
    model: str,
    weights: str,
    num_classes: int,
    input_size: int | None,
    calibration: Path,
    data: Path,
    emulated: int,
    ill_scaled: int | None,
    as_json: bool,
) -> None:
    warnings.simplefilter("ignore")
    task = find_model(model)[1].task
    jobs = [
        plan_build(
            BuildRequest(
                model=model,
                target=target.name,
                modes=("int8-ptq",),
                int8_scope="whole" if task == "detection" else None,
                weights=WeightsRequest(source=weights, num_classes=num_classes),
                input_size=input_size,
                calibration=CalibrationRequest(folder=calibration, pictures=64, batch_size=8),
                data=data,
                epochs=1,
                output=Path("dist"),
                seed=0,
            )
        )
        for target in load_targets()
    ]
    with tempfile.TemporaryDirectory(prefix="edge-bundler-bench-") as text:
        folder = Path(text)
        (folder / "models").mkdir()
        graphs, inputs, labels = _graphs(jobs, task, folder, ill_scaled)
        results = {name: _run_here(path, inputs) for name, path in graphs.items()}
        rows = [_figures(name, NATIVE, values, results, labels) for name, values in results.items()]
        if emulated:
            np.save(folder / "inputs.npy", inputs[:emulated])
            (folder / "runner.json").write_text("{}")  # the graphs are run by themselves
            write_device_program(folder)
            rows += _on_every_cpu(graphs, results, labels, folder, emulated)
    if as_json:
        console.json_result(rows)
    else:
        _print(rows)


def scale_ill(network: nn.Module, sample: torch.Tensor, *, seed: int) -> None:
    """Multiply the channels between two layers by factors from 0.05 to 20, in place, and divide by them behind."""
    generator = torch.Generator().manual_seed(seed)
    for stream in equalization_groups(network, sample):
        if len(stream.writers) == len(stream.readers) == 1:
            stream.divide(torch.exp(torch.empty(len(stream.writers[0].weight)).uniform_(-3, 3, generator=generator)))


def _graphs(jobs: list[BuildJob], task: Task, folder: Path, ill_scaled: int | None) -> tuple[Graphs, Outputs, Labels]:
    """Write FP32, ours for each target, and theirs; of graphs with the same bytes, the first under all their names."""
    graphs: Graphs = {}
    for job in jobs:
        loaded = load_inputs(job)
        network = load_network(job.variant, loaded.weights, int8_scope=job.int8_scope)
        inputs, labels = _pictures(None if loaded.labelled is None else loaded.labelled.validation)
        sample = torch.from_numpy(inputs[:2])
        if ill_scaled is not None:
            scale_ill(network.float_model, sample[:1], seed=ill_scaled)
        if "FP32" not in graphs:
            graphs["FP32"] = folder / "models" / "fp32.onnx"
            export_onnx(network.float_model, sample, graphs["FP32"], opset=job.target.export.opset, task=task, quantized=False)
        profile = job.target.quantization
        ours = quantize_post_training(network, loaded.calibration, profile)
        graphs[f"ours for {job.target.name}"] = path = folder / "models" / f"{job.target.name}.onnx"
        with quantized_engine(profile.engine):
            export_onnx(ours.converted, sample, path, opset=job.target.export.opset, task=task, quantized=True)
    console.step("Quantizing with quantize_static")
    with redirect_stdout(sys.stderr):  # stdout is for results, and it prints
        graphs |= _theirs(graphs["FP32"], task, loaded.calibration.images.pictures, folder)
    named: dict[str, list[str]] = {}
    for name, path in graphs.items():
        named.setdefault(sha256_of(path), []).append(name)
    return {", ".join(names): graphs[names[0]] for names in named.values()}, inputs, labels


def _pictures(labelled: LabelledImages | DetectionImages | None) -> tuple[Outputs, Labels]:
    if isinstance(labelled, DetectionImages):
        return np.stack([picture.pixels for picture in labelled]), None
    assert isinstance(labelled, LabelledImages)
    inputs, labels = next(labelled.batches(len(labelled)))
    order = np.random.default_rng(0).permutation(len(labels))  # a part of them has all classes
    return inputs[order], labels[order]


def _theirs(fp32: Path, task: Task, calibrating: Outputs, folder: Path) -> Graphs:
    """Quantize as ONNX Runtime's guide says: pre-processed, QDQ, uint8 activations and int8 weights."""
    graphs = {}
    prepared = folder / "pre.onnx"
    quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=task == "detection")  # which it fails at
    in_float = _decoding(onnx.load(prepared).graph) if task == "detection" else []
    for method in (CalibrationMethod.MinMax, CalibrationMethod.Entropy):
        for reduce_range in (False, True):
            name = f"quantize_static {method.name}{' reduce_range' if reduce_range else ''}"
            graphs[name] = folder / "models" / f"{method.name}-{reduce_range}.onnx"
            quantize_static(
                str(prepared),
                str(graphs[name]),
                _Pictures(calibrating),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=method,
                nodes_to_exclude=in_float,
            )
    return graphs


def _decoding(graph: onnx.GraphProto) -> list[str]:
    """Return what follows the last convolutions, by name."""
    producers = {name: node for node in graph.node for name in node.output}
    found, names = set[str](), [graph.output[0].name]
    while names:
        node = producers.get(names.pop())
        if node is not None and node.op_type != "Conv" and node.name not in found:
            found.add(node.name)
            names += node.input
    return sorted(found)


def _run_here(graph: Path, inputs: Outputs) -> Outputs:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {INPUT: inputs[index : index + 1]})[0] for index in range(len(inputs))])


def _on_every_cpu(
    graphs: Graphs, results: Mapping[str, Outputs], labels: Labels, folder: Path, pictures: int
) -> list[dict[str, Any]]:
    """Run all but FP32 in each target's device image, on each of its emulated CPUs."""
    rows = []
    native = {name: values[:pictures] for name, values in results.items()}
    with connect() as engine:
        for target in load_targets():
            request = ImageRequest(
                bundle=folder,
                files=["device.pyz", "models/fp32.onnx", "runner.json"],
                reference=temporary_reference(f"bench-{target.name}-{uuid.uuid4().hex[:12]}"),
                labels={},
            )
            archive = assemble_image(target, request, engine=engine, workspace=folder)
            with loaded_image(engine, archive) as image:
                executor = ContainerExecutor(engine=engine, image=image, target=target)
                for cpu in target.verification.cpus:
                    launch = executor.launch(cpu)
                    if cpu.name == NATIVE or not isinstance(launch, Launch):
                        continue
                    for name, path in list(graphs.items())[1:]:
                        console.step(f"{name} on {cpu.name}")
                        result = executor.trace(launch, path, folder / "inputs.npy", [LEVEL, str(pictures)])
                        if result.exit_code:
                            raise click.ClickException(f"{name} does not run on {cpu.name}: {result.death or result.stderr}")
                        with np.load(io.BytesIO(base64.b64decode(result.stdout))) as printed:
                            outputs = printed["outputs"]
                        figures = _figures(name, cpu.name, outputs, native, None if labels is None else labels[:pictures])
                        rows.append({**figures, "same_bits": bool(np.array_equal(outputs, native[name]))})
    return rows


def _figures(name: str, cpu: str, outputs: Outputs, native: Mapping[str, Outputs], labels: Labels) -> dict[str, Any]:
    reference = native["FP32"]
    score, before = (_score(values, reference, labels) for values in (outputs, reference))
    pictures = range(len(outputs))
    noise = [sqnr_db(reference[index : index + 1], outputs[index : index + 1]) for index in pictures]
    return {
        "what": name,
        "cpu": cpu,
        "pictures": len(outputs),
        "measure": "boxes" if labels is None else "top1",
        "score": score,
        "drop": before - score,
        "sqnr_db": sqnr_db(reference, outputs),
        "median_sqnr_db": float(np.median(noise)),
        "same_bits": None,
    }


def _score(outputs: Outputs, reference: Outputs, labels: Labels) -> float:
    """Return top-1, or the share of boxes that FP32 sees as well, in percent."""
    if labels is not None:
        return 100 * float((outputs.argmax(1) == labels).mean())
    agreed = np.array([agreeing(shown(rows), shown(seen)) for rows, seen in zip(outputs, reference, strict=True)])
    same, count = agreed.sum(0)
    return 100 * float(same / count)


def _print(rows: list[dict[str, Any]]) -> None:
    bits = {None: "", True: "same", False: "OTHER"}
    console.table(
        (
            "what",
            "cpu",
            "pictures",
            {"top1": "top-1", "boxes": "boxes"}[rows[0]["measure"]],
            "points lost",
            "SQNR dB",
            "of the median",
            "bits",
        ),
        [
            (
                row["what"],
                row["cpu"],
                str(row["pictures"]),
                f"{row['score']:.2f} %",
                f"{row['drop']:+.2f}",
                f"{row['sqnr_db']:.2f}",
                f"{row['median_sqnr_db']:.2f}",
                bits[row["same_bits"]],
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
