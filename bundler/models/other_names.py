"""Key names of the same networks in timm and older torchvision releases, and networks with similar keys.

Compared with timm 1.0.31: its resnet*, resnext*, wide_resnet* and densenet* have torchvision's names, and the same outputs bit
for bit; so have efficientnet_b0 to b4 and mobilenetv2_100 under the names below. Its efficientnet_b5 to b7 and mobilenetv3_*
have another BatchNorm eps (1e-5, torchvision 1e-3), and all of its tf_* have other padding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from bundler.quantization.weight_names import Naming, Shapes

__all__ = ["TIMM", "other_namings", "relative"]

TIMM = "timm"
_SAME_IN_TIMM = ("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_b4", "mobilenet_v2")
_MOBILENET_V2 = (1, 2, 3, 4, 3, 3, 1)  # blocks of each stage (Sandler et al. 2018, table 2)


def other_namings(name: str, shapes: Shapes) -> Iterable[Naming]:
    """Yield the naming schemes of other libraries for the network `name`, whose state dict has `shapes`."""
    if name.startswith("densenet"):  # from before torch banned dots in module names
        older = {key: re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", key) for key in shapes}
        yield _naming("older torchvision", shapes, older)
    if name in _SAME_IN_TIMM:
        modules = _mobilenet_v2() if name == "mobilenet_v2" else _efficientnet(shapes)
        renamed = {key: f"{modules[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}" for key in shapes}
        yield _naming(TIMM, shapes, renamed)


def _naming(form: str, shapes: Shapes, names: Mapping[str, str]) -> Naming:
    return Naming(form=form, shapes=shapes, names={key: (other,) for key, other in names.items()})


def _efficientnet(shapes: Shapes) -> dict[str, str]:
    """Return timm's name of each module of an EfficientNet."""
    modules = {"features.0.0": "conv_stem", "features.0.1": "bn1", "classifier.1": "classifier"}
    last = max(int(key.split(".")[1]) for key in shapes if key.startswith("features."))
    modules |= {f"features.{last}.0": "conv_head", f"features.{last}.1": "bn2"}
    for stage in range(1, last):
        layers = sorted({int(key.split(".")[2]) for key in shapes if key.startswith(f"features.{stage}.")})
        for layer in layers:
            ours, theirs = f"features.{stage}.{layer}.block", f"blocks.{stage - 1}.{layer}"
            if f"{ours}.3.0.weight" in shapes:
                parts = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "3.0": "conv_pwl", "3.1": "bn3"}
                squeeze = "2"
            else:  # the first stage has no expansion
                parts = {"0.0": "conv_dw", "0.1": "bn1", "2.0": "conv_pw", "2.1": "bn2"}
                squeeze = "1"
            parts |= {f"{squeeze}.fc1": "se.conv_reduce", f"{squeeze}.fc2": "se.conv_expand"}
            modules |= {f"{ours}.{part}": f"{theirs}.{other}" for part, other in parts.items()}
    return modules


def _mobilenet_v2() -> dict[str, str]:
    """Return timm's name of each module of a MobileNetV2."""
    modules = {"features.0.0": "conv_stem", "features.0.1": "bn1", "classifier.1": "classifier"}
    modules |= {"features.18.0": "conv_head", "features.18.1": "bn2"}
    places = [(stage, layer) for stage, depth in enumerate(_MOBILENET_V2) for layer in range(depth)]
    for index, (stage, layer) in enumerate(places, start=1):
        parts = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "2": "conv_pwl", "3": "bn3"}
        if index == 1:
            parts = {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2"}
        modules |= {f"features.{index}.conv.{part}": f"blocks.{stage}.{layer}.{other}" for part, other in parts.items()}
    return modules


# Keys of networks that are often mistaken for supported ones.
_TIMM_OTHERS = (
    "a network of timm (conv_stem, blocks) that computes something else: its tf_* have other padding, and its mobilenetv3 and "
    "efficientnet_b5 to b7 have a BatchNorm eps of 1e-5 instead of 1e-3"
)
_RELATIVES = (
    (r"(^|\.)_conv_stem\.weight$", "an EfficientNet of the package efficientnet_pytorch, which pads as TensorFlow does"),
    (r"(^|\.)conv_stem\.weight$", _TIMM_OTHERS),
    (r"(^|\.)layer1\.0\.se\.", "a ResNet with squeeze and excitation (SE-ResNet)"),
    (r"(^|\.)conv1\.3\.weight$", "a ResNet whose first convolution is three (ResNet-C, -D; resnet50d in timm)"),
    (r"(^|\.)embedder\.embedder\.convolution\.weight$", "a ResNet of the package transformers, which has other key names"),
    (r"(^|\.)patch_embed\.proj\.weight$|(^|\.)class_token$", "a vision transformer"),
    (r"(^|\.)model\.\d+\.conv\.weight$", "a YOLO of Ultralytics"),
    (r"(^|\.)layer4\.0\.conv1\.weight$", "a ResNet, ResNeXt or Wide ResNet"),
    (r"(^|\.)denseblock1\.denselayer1\.", "a DenseNet"),
    (r"(^|\.)features\.\d+\.conv\.\d+\.", "a MobileNetV2"),
    (r"(^|\.)features\.\d+\.block\.\d+\.", "a MobileNetV3"),
    (r"(^|\.)features\.\d+\.\d+\.block\.\d+\.\d+\.", "an EfficientNet"),
    (r"(^|\.)features\.0\.weight$", "a VGG, an AlexNet or a SqueezeNet"),
)


def relative(keys: Iterable[str], own: Iterable[str]) -> str | None:
    """Return the network to which the keys of a state dict belong; None if it is unknown, or the `own` keys match it too."""
    listed, owned = "\n".join(keys), "\n".join(own)
    for pattern, what in _RELATIVES:
        if re.search(pattern, listed, re.MULTILINE):
            return None if re.search(pattern, owned, re.MULTILINE) else what
    return None
