"""The bare minimum to compare with: calibrate, convert and two exports in plain torch, in one script.

Usage: plain.py WEIGHTS.pth PICTURES OUTPUT
"""

import sys
from pathlib import Path

import torch
from PIL import Image

import bundler.models.torchvision_operators  # noqa: F401  so that torchvision imports beside a CPU torch

from torchvision.models import mobilenet_v2
from torchvision.models.quantization import mobilenet_v2 as quantizable_mobilenet_v2
from torchvision.transforms._presets import ImageClassification

PICTURES, BATCH = 64, 8


def main(weights: str, folder: str, output: str) -> None:
    state = torch.load(weights, weights_only=True)
    preprocess = ImageClassification(crop_size=224, resize_size=232)
    files = sorted(Path(folder).iterdir())[:PICTURES]
    pictures = torch.stack([preprocess(Image.open(file).convert("RGB")) for file in files])
    torch.backends.quantized.engine = "qnnpack"
    model = quantizable_mobilenet_v2(weights=None, quantize=False)
    model.load_state_dict(state)
    model.eval()
    model.fuse_model(is_qat=False)
    model.qconfig = torch.ao.quantization.get_default_qconfig("qnnpack")
    torch.ao.quantization.prepare(model, inplace=True)
    with torch.inference_mode():
        for batch in pictures.split(BATCH):
            model(batch)
    torch.ao.quantization.convert(model, inplace=True)
    plain = mobilenet_v2(weights=None)
    plain.load_state_dict(state)
    for name, exported in (("int8", model), ("fp32", plain.eval())):
        torch.onnx.export(
            exported,
            (pictures[:2],),
            str(Path(output) / f"{name}.onnx"),
            dynamo=False,
            opset_version=13,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
