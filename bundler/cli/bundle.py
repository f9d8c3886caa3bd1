"""`bundler bundle`: build, quantize, verify and package a model for a target."""

from __future__ import annotations

from pathlib import Path

import click

from bundler import console
from bundler.cli.failures import INCOMPLETE
from bundler.cli.output_option import output_option
from bundler.cli.parameters import parse_pixels
from bundler.cli.preprocessing_options import preprocessing_options
from bundler.cli.renamed_option import renamed_option
from bundler.cli.summary import print_summary
from bundler.data.preprocessing import Pixels
from bundler.models.specs import Int8Scope
from bundler.pipeline.build_bundle import build_bundle
from bundler.plan import BuildRequest, CalibrationRequest, DeviceImageRequest, WeightsRequest, plan_build
from bundler.preprocessing_request import PreprocessingRequest

__all__ = ["command"]


@click.command("bundle")
@click.argument("model")
@click.option("--target", required=True, metavar="TARGET", help="Name, alias, or path of a target profile (`bundler targets`).")
@click.option(
    "--mode",
    "modes",
    multiple=True,
    metavar="MODE",
    help="fp32, int8-ptq, int8-qat; repeatable.  [default: the first two]",
)
@click.option(
    "--int8-scope",
    type=click.Choice(("backbone", "whole")),
    help="How much of a detector becomes INT8.  [default: backbone]",
)
@click.option(
    "--weights",
    default="auto",
    show_default=True,
    metavar="WEIGHTS",
    help="auto, pretrained, random, or a file of weights: torch.save, safetensors, Darknet, or an archive with one.",
)
@click.option(
    "--weights-key",
    metavar="NAME",
    help="Which weights of a file that holds several: a key or a prefix, such as ema or student.",
)
@click.option(
    "--cfg",
    type=click.Path(path_type=Path),
    metavar="FILE.cfg",
    help="Darknet's cfg of a yolov3 or yolov4: its activations, anchors, classes and scale_x_y.  [default: the published ones]",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of images, flat or with class folders.",
)
@click.option(
    "--calibration-images",
    "calibration_pictures",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Number of calibration images.",
)
@renamed_option("--calibration-pictures", "--calibration-images")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Images per batch.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Measure accuracy on labelled images: class folders or a CSV file; for a detector YOLO's or COCO's labels, or none. "
    "Of val/ if there is one; int8-qat learns from train/, or from four fifths of them.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    metavar="POINTS",
    help="Fail if INT8 loses more top-1 (or mAP, or boxes) than this.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=8, show_default=True, help="Training epochs for int8-qat.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Initial learning rate for int8-qat.  [default: 0.001; detectors: 0.0001]",
)
@click.option(
    "--num-classes",
    type=int,
    metavar="N",
    help="Classes of the weights.  [default: as the file has, or 1000; detectors: 80]",
)
@click.option(
    "--input-size",
    type=parse_pixels,
    metavar="N|HxW",
    help="Pixels of the input: a square, or height x width; images are resized to it.  [default: of the published weights]",
)
@preprocessing_options
@click.option(
    "--base-image", metavar="IMAGE", help="Image with Python to build on, instead of one made from Debian's packages."
)
@click.option(
    "--tag",
    metavar="NAME:TAG",
    help="Name of the device image in the engine.  [default: MODEL:TARGET-, and digits of its digest]",
)
@output_option("Directory that bundles are written to, as TARGET/MODEL.")
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
    calibration_pictures: int,
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
        BuildRequest(
            model=model,
            target=target,
            modes=modes,
            int8_scope=int8_scope,
            weights=WeightsRequest(source=weights, key=weights_key, num_classes=num_classes, cfg=cfg),
            input_size=input_size,
            preprocessing=preprocessing,
            calibration=CalibrationRequest(folder=calibration, pictures=calibration_pictures, batch_size=batch_size),
            data=data,
            max_drop=max_drop,
            epochs=epochs,
            learning_rate=learning_rate,
            image=DeviceImageRequest(base=base_image, tag=tag),
            output=output,
            seed=seed,
        )
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
