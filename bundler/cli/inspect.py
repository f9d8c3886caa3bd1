"""`bundler inspect`: a summary of a bundle's manifest."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import click

from bundler import console
from bundler.cli.summary import print_summary
from bundler.manifest import FallbackRecord, Manifest, QuantizationRecord, summarize_preprocessing
from bundler.packaging.installation import complete_installation
from bundler.packaging.reading import check_bundle
from bundler.packaging.unpacking import is_archive, unpacked

__all__ = ["command"]

_SCOPES = {"whole": "the whole network", "backbone": "the backbone", None: "part of the network"}


@click.command("inspect")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--layers", is_flag=True, help="Show the SQNR of each INT8 layer against FP32.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def command(*, bundle: Path, layers: bool, as_json: bool) -> None:
    """Show the manifest of a bundle.

    BUNDLE is a directory or its .tar.gz. Every file is compared with its checksum first.

    \b
    Example:
      bundler inspect dist/arm64-qnnpack/mobilenet_v2
      bundler inspect --layers dist/arm64-qnnpack/mobilenet_v2
    """
    complete_installation(bundle.resolve())
    with unpacked(bundle) if is_archive(bundle) else nullcontext(bundle) as folder:
        manifest = check_bundle(folder).manifest
    if as_json:
        console.json_result(manifest.model_dump(mode="json", by_alias=True))
        return
    model = manifest.model
    console.text_result(f"{manifest.bundle}: {model.row} for {manifest.target.platform}, {model.num_classes} classes")
    trained = "" if model.weights.trained else " (NOT TRAINED)"
    console.text_result(f"weights {model.weights.source}{trained}, sha256 {model.weights.sha256[:16]}…")
    console.text_result(f"preprocessing: {summarize_preprocessing(model.preprocessing)}")
    for mode in manifest.modes:
        if mode.quantization:
            rounding = f"{len(mode.quantization.ties)} operators round alike on every CPU"
            products = f"{len(mode.quantization.saturation)} products, {_saturating(mode.quantization)} of which can saturate"
            console.text_result(
                f"{mode.name}: {_SCOPES[mode.scope]} in INT8 ({mode.quantization.engine}), {_ranges_from(mode.quantization)}; "
                f"float operators left: {mode.quantization.float_operators or 'none'}; {rounding}, {products}"
            )
            for step in mode.quantization.recovery:
                console.text_result(f"{mode.name}: {_tried(step)}")
    console.text_result("")
    print_summary(manifest)
    console.text_result("")
    rows = [
        (
            mode.name,
            item.cpu,
            item.verdict,
            item.machine or "-",
            f"{item.runner.name} {item.runner.version}".strip() if item.runner else "-",
            "-" if item.sqnr_db is None else f"{item.sqnr_db:.1f}",
            _share(item.boxes_agreement if model.task == "detection" else item.top1_agreement),
            "-" if item.max_steps is None else str(item.max_steps),
            (item.outputs_sha256 or "-")[:12],
            item.reason,
        )
        for mode in manifest.modes
        for item in (*mode.evidence, *(item for record in mode.fleet for item in record.evidence))
    ]
    same = "boxes as FP32" if model.task == "detection" else "top-1 as FP32"
    console.table(("mode", "cpu", "verdict", "machine", "executed by", "SQNR dB", same, "max error", "outputs", "reason"), rows)
    if layers:
        _print_layers(manifest)


def _print_layers(manifest: Manifest) -> None:
    """Print each layer's SQNR; that of its outputs includes the noise of all preceding layers."""
    for mode in manifest.modes:
        if mode.quantization is None:
            continue
        console.text_result("")
        console.text_result(f"{mode.name}: torch's INT8 against FP32 on the golden inputs, in the order of execution")
        rows = [
            (layer.name, _decibel(layer.weight_sqnr_db), _decibel(layer.output_sqnr_db)) for layer in mode.quantization.layers
        ]
        console.table(("layer", "weights dB", "outputs dB"), rows)


def _decibel(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _ranges_from(quantization: QuantizationRecord) -> str:
    training, calibration = quantization.training, quantization.calibration
    if training is not None:
        return f"trained on {training.pictures} images for {training.epochs} epochs"
    if calibration is None:
        return "neither calibration nor training recorded"
    kind = "synthetic images" if calibration.source == "synthetic" else "images"
    return f"calibrated with {calibration.count} {kind}"


def _tried(step: FallbackRecord) -> str:
    what = f"{step.step} ({step.detail})" if step.detail else step.step
    if step.won_points is None:
        return f"{what} was not tried"
    return f"{what} gained {step.won_points:+.2f} points, {'kept' if step.kept else 'not kept'}"


def _saturating(quantization: QuantizationRecord) -> int:
    return sum(1 for record in quantization.saturation if record.saturating_channels)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
