"""`bundler bundle`: build, quantize, verify and package a model for a target."""

from __future__ import annotations

from pathlib import Path

import click

from bundler import console
from bundler.cli.exit_codes import INCOMPLETE
from bundler.cli.parameters import parse_pixels, renamed_option
from bundler.cli.preprocessing_options import preprocessing_options
from bundler.cli.summary import print_summary
from bundler.data.preprocessing import Pixels
from bundler.models.specs import Int8Scope
from bundler.pipeline.build_bundle import build_bundle
from bundler.plan import CalibrationRequest, plan_build
from bundler.preprocessing_request import PreprocessingRequest

__all__ = ["command"]


@click.command("bundle")
@click.argument("model")
@click.option("--target", required=True, metavar="TARGET", help="Name, alias or path of a target profile.")
@click.option(
    "--mode",
    "modes",
    multiple=True,
    metavar="MODE",
    help="fp32, int8-ptq or int8-qat; repeatable.  [default: fp32 and int8-ptq]",
)
@click.option(
    "--int8-scope",
    type=click.Choice(("backbone", "whole")),
    help="Detectors: the part that is quantized.  [default: backbone]",
)
@click.option(
    "--weights",
    default="auto",
    show_default=True,
    metavar="WEIGHTS",
    help="auto, pretrained, random, or a file: torch.save, safetensors, Darknet .weights, or an archive with one of these.",
)
@click.option(
    "--weights-key",
    metavar="NAME",
    help="Which weights to use of a file that holds several: a key or a prefix, such as ema or student.",
)
@click.option(
    "--cfg",
    type=click.Path(path_type=Path),
    metavar="FILE.cfg",
    help="yolov3 and yolov4: Darknet cfg file with activations, anchors, classes and scale_x_y.  [default: as published]",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Directory of calibration images: flat, or one subdirectory per class.  [default: synthetic images]",
)
@click.option(
    "--calibration-images", type=click.IntRange(min=1), default=64, show_default=True, help="Number of calibration images."
)
@renamed_option("--calibration-pictures", "--calibration-images")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Calibration images per batch.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Images to measure accuracy on: class directories or a CSV file; for detectors YOLO or COCO labels, or no labels. "
    "Of a directory with val/, only that; int8-qat trains on train/, or on four fifths of the images.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    metavar="POINTS",
    help="Fail if INT8 loses more percentage points of top-1 (detectors: mAP; without labels, agreement of boxes).",
)
@click.option("--epochs", type=click.IntRange(min=1), default=8, show_default=True, help="Epochs of training for int8-qat.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Initial learning rate of training for int8-qat.  [default: 0.001; detectors: 0.0001]",
)
@click.option(
    "--num-classes",
    type=int,
    metavar="N",
    help="Number of classes.  [default: as in the weights file, or 1000; detectors: 80]",
)
@click.option(
    "--input-size",
    type=parse_pixels,
    metavar="N|HxW",
    help="Input size in pixels, square or height x width; images are resized to it.  [default: as published for the weights]",
)
@preprocessing_options
@click.option(
    "--base-image",
    metavar="IMAGE",
    help="Build the device image on this image with Python.  [default: made from Debian packages]",
)
@click.option(
    "--tag",
    metavar="NAME:TAG",
    help="Name of the device image in the container engine.  [default: MODEL:TARGET- and digits of its digest]",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("dist"),
    show_default=True,
    metavar="DIR",
    help="Directory that bundles are written to, as TARGET/MODEL.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of random weights and of the selection of images.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    model: str,
    target: str,
    modes: tuple[str, ...],
    int8_scope: Int8Scope | None,
    weights: str,
    cfg: Path | None,
    weights_key: str | None,
    calibration: Path | None,
    calibration_images: int,
    batch_size: int,
    num_classes: int | None,
    input_size: Pixels | None,
    preprocessing: PreprocessingRequest,
    data: Path | None,
    max_drop: float | None,
    epochs: int,
    learning_rate: float | None,
    base_image: str | None,
    tag: str | None,
    output: Path,
    seed: int,
    as_json: bool,
) -> None:
    """Build, quantize, verify and package a model for a target.

    \b
    Examples:
      bundler bundle mobilenet_v2 --target arm64 --calibration images/
      bundler bundle resnet18 --target x86 --weights mine.pth --num-classes 10 --input-size 64
      bundler bundle resnet18 --target x86 --weights mine.pth --mean 0 --std 1    # trained on ToTensor() alone
      bundler bundle yolov5s --target arm64 --weights yolov5s.pt --input-size 384x640
    """
    job = plan_build(
        model,
        target,
        modes=modes,
        int8_scope=int8_scope,
        weights=weights,
        cfg=cfg,
        weights_key=weights_key,
        num_classes=num_classes,
        input_size=input_size,
        calibration=CalibrationRequest(folder=calibration, pictures=calibration_images, batch_size=batch_size),
        data=data,
        max_drop=max_drop,
        epochs=epochs,
        learning_rate=learning_rate,
        base_image=base_image,
        tag=tag,
        output=output,
        seed=seed,
        preprocessing=preprocessing,
    )
    bundle = build_bundle(job)
    if as_json:
        console.json_result(bundle.manifest.model_dump(mode="json", by_alias=True))
    else:
        print_summary(bundle.manifest)
        for line in ("", str(bundle.directory), str(bundle.archive)):
            console.text_result(line)
    if bundle.manifest.verdict != "passed":
        ctx.exit(INCOMPLETE)
