"""Checkpoints of the YOLO detectors: how many classes they have, and with which options their parser builds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bundler.errors import CheckpointError
from bundler.models.activation_modules import describe_activations
from bundler.models.darknet_architecture import DarknetArchitecture
from bundler.models.darknet_networks import DarknetNetwork, read_cfg
from bundler.models.darknet_weights import darknet_classes, read_darknet_weights
from bundler.models.detector_file import DetectorFile, agreed_classes
from bundler.models.pickled_modules import Payload
from bundler.models.specs import ModelSpec
from bundler.models.yolov5_checkpoints import read_yolov5

__all__ = ["Architecture", "is_detector", "read_darknet", "read_detector"]


def is_detector(variant: ModelSpec) -> bool:
    """Say whether a variant is one of this package's detectors."""
    return variant.task == "detection" and variant.parser.startswith("bundler.models.")


class Architecture:
    """What is known of a detector's network before its weights are read: from a cfg, or nothing.

    Args:
        variant: of the model.
        parser: of the variant.
        num_classes: what was asked for; None to take it from the files.
        cfg: Darknet's cfg file; None where none was given.

    Raises:
        CheckpointError: the cfg cannot be read, describes another network, or has another number of classes.
    """

    def __init__(self, variant: ModelSpec, parser: Callable[..., Any], *, num_classes: int | None, cfg: Path | None) -> None:
        self.variant = variant
        self.parser = parser
        self.num_classes = num_classes
        self.options: Mapping[str, Any] = {}
        self.network: str | None = None
        if cfg is not None:
            self._use(_read(cfg, variant.name), cfg.name)

    def _use(self, found: DarknetNetwork, source: str) -> None:
        if self.num_classes not in {None, found.num_classes}:
            raise CheckpointError(
                f"{source} has classes={found.num_classes}, and --num-classes is {self.num_classes}",
                next_step=f"Leave --num-classes out, or give --num-classes {found.num_classes}.",
            )
        self.num_classes = found.num_classes
        self.options = {"architecture": found.architecture}
        height, width = found.size
        self.network = f"as {source} says: {_described(found.architecture)}; its input has {width}x{height} pixels"

    @property
    def classes(self) -> int:
        """The number of classes where no file tells it."""
        return self.variant.num_classes if self.num_classes is None else self.num_classes

    def build(self, num_classes: int, options: Mapping[str, Any] | None = None) -> Any:
        """Return the network without numbers, on torch's meta device; another package's with numbers, as it may need them."""
        ours = self.variant.parser.startswith("bundler.models.")
        with torch.device("meta" if ours else "cpu"):
            return self.parser(num_classes=num_classes, **(self.options if options is None else options))

    def shapes(self, num_classes: int) -> dict[str, tuple[int, ...]]:
        return {key: tuple(value.shape) for key, value in self.build(num_classes).state_dict().items()}


def _read(cfg: Path, model: str) -> DarknetNetwork:
    try:
        content = cfg.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{cfg} cannot be read: {error.strerror}", next_step="--cfg takes the path of Darknet's .cfg file."
        ) from error
    return read_cfg(content, model, source=str(cfg))


def _described(architecture: DarknetArchitecture) -> str:
    scales = (",".join(f"{width:g}x{height:g}" for width, height in anchors) for anchors in architecture.anchors)
    activations = describe_activations(architecture.activations or ())
    shifts = ", ".join(f"{scale:g}" for scale in architecture.xy_scales)
    return f"activations {activations}; anchors {' / '.join(scales)}; scale_x_y {shifts}, for strides 8, 16 and 32"


def read_darknet(content: bytes, known: Architecture, *, source: str) -> DetectorFile:
    """Return what Darknet's weights give; their length tells the number of classes.

    Raises:
        CheckpointError: they are damaged, or of another network or another number of classes than was asked for.
    """
    model = known.build(known.classes)
    if not hasattr(model, "darknet_layers"):
        raise CheckpointError(
            f"{source} is a Darknet file, and {known.variant.name} is no network of Darknet's",
            next_step="Give a .pth, .pt or .safetensors file; .weights are for yolov3 and yolov4.",
        )

    def numbers_of(classes: int) -> int:
        stored = known.build(classes).state_dict().items()
        return sum(value.numel() for key, value in stored if not key.endswith("num_batches_tracked"))

    fitting = darknet_classes(content, numbers_of)
    classes = fitting if fitting is not None and known.num_classes is None else known.classes
    try:
        state_dict = read_darknet_weights(content, model.darknet_layers(), known.shapes(classes), source=source)
    except CheckpointError as error:
        if fitting in {None, classes}:
            raise
        misfit = error.message.removeprefix(f"the checkpoint {source} ")
        raise CheckpointError(
            f"the checkpoint {source} is as long as weights with {fitting} classes are, and {classes} were asked for, "
            f"with which it {misfit}",
            next_step=f"Give --num-classes {fitting}, or leave the option out: the number follows from the file's length."
            if known.network is None
            else f"Give the cfg with which these weights were trained: it has classes={fitting}.",
        ) from error
    assumed = (
        f"activations, anchors and scale_x_y are not in a .weights file: those of the published {known.variant.name}.cfg are "
        "assumed; --cfg FILE.cfg gives others"
    )
    return DetectorFile(
        state_dict=state_dict,
        num_classes=classes,
        options=known.options,
        network=known.network or assumed,
    )


def read_detector(
    state_dict: Mapping[str, Tensor], payload: Payload | None, known: Architecture, *, source: str
) -> DetectorFile:
    """Return what a checkpoint of torch's gives.

    Args:
        state_dict: the file's tensors.
        payload: what its pickle describes; None for a file of tensors alone.
        known: of the network.
        source: what messages call the file.

    Raises:
        CheckpointError: it is of another network or another number of classes than was asked for.
    """
    if known.variant.name.startswith("yolov5"):
        return read_yolov5(
            state_dict,
            payload,
            build=known.parser,
            name=known.variant.name,
            num_classes=known.num_classes,
            source=source,
        )
    model = known.build(known.classes)
    found = model.classes_in({key: tuple(value.shape) for key, value in state_dict.items()})
    anchors = model.anchors_per_cell()
    return DetectorFile(
        state_dict=state_dict,
        num_classes=agreed_classes(found, known.num_classes, anchors=anchors, source=source) if found else known.classes,
        options=known.options,
        network=known.network or f"activations and anchors of the published {known.variant.name}.cfg are assumed",
    )
