"""Checkpoints of the YOLO detectors: their number of classes and the options with which their parser builds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bundler.errors import CheckpointError
from bundler.models.activation_modules import describe_activations
from bundler.models.darknet_cfg import MOST_BYTES, DarknetArchitecture
from bundler.models.darknet_networks import DarknetNetwork, read_cfg
from bundler.models.darknet_weights import darknet_classes, read_darknet_weights
from bundler.models.detector_file import DetectorFile, agreed_classes
from bundler.models.pickled_modules import Payload
from bundler.models.specs import ModelSpec
from bundler.models.yolov5_checkpoints import read_yolov5
from bundler.plain_files import read_regular
from bundler.visible import visible

__all__ = ["Architecture", "is_detector", "read_darknet", "read_detector"]


def is_detector(variant: ModelSpec) -> bool:
    """Return whether a variant is one of this package's detectors."""
    return variant.task == "detection" and variant.parser.startswith("bundler.models.")


class Architecture:
    """A network before its weights are read: with the settings of a cfg, or the defaults.

    Args:
        variant: of the model.
        parser: of the variant.
        num_classes: value of --num-classes; None to take it from the files.
        cfg: Darknet's cfg file, if one is given.

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
                f"{source} has classes={found.num_classes}, but --num-classes is {self.num_classes}",
                next_step=f"Omit --num-classes, or pass --num-classes {found.num_classes}.",
            )
        self.num_classes = found.num_classes
        self.options = {"architecture": found.architecture}
        height, width = found.size
        self.network = f"settings of {source}: {_described(found.architecture)}; input of {width}x{height} pixels"

    @property
    def classes(self) -> int:
        """The number of classes to use if the weights do not determine it."""
        return self.variant.num_classes if self.num_classes is None else self.num_classes

    def build(self, num_classes: int, options: Mapping[str, Any] | None = None) -> Any:
        """Return the network: on the meta device, or on the CPU for another package's model, which may need values."""
        ours = self.variant.parser.startswith("bundler.models.")
        with torch.device("meta" if ours else "cpu"):
            return self.parser(num_classes=num_classes, **(self.options if options is None else options))

    def shapes(self, num_classes: int) -> dict[str, tuple[int, ...]]:
        return {key: tuple(value.shape) for key, value in self.build(num_classes).state_dict().items()}


def _read(cfg: Path, model: str) -> DarknetNetwork:
    try:
        content = read_regular(cfg, limit=MOST_BYTES, follow_links=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{visible(cfg)} cannot be read: {getattr(error, 'strerror', None) or error}",
            next_step="--cfg takes the path of Darknet's .cfg file.",
        ) from error
    return read_cfg(content, model, source=visible(cfg))


def _described(architecture: DarknetArchitecture) -> str:
    scales = (",".join(f"{width:g}x{height:g}" for width, height in anchors) for anchors in architecture.anchors)
    activations = describe_activations(architecture.activations or ())
    shifts = ", ".join(f"{scale:g}" for scale in architecture.xy_scales)
    return f"activations {activations}; anchors {' / '.join(scales)}; scale_x_y {shifts}, for strides 8, 16 and 32"


def read_darknet(content: bytes, known: Architecture, *, source: str) -> DetectorFile:
    """Return the state dict of Darknet weights; the number of classes follows from their length.

    Raises:
        CheckpointError: they are damaged, or of another network or number of classes than requested.
    """
    model = known.build(known.classes)
    if not hasattr(model, "darknet_layers"):
        raise CheckpointError(
            f"{source} is a Darknet file, but {known.variant.name} is not a Darknet network",
            next_step="Pass a .pth, .pt or .safetensors file; .weights are for yolov3 and yolov4.",
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
            f"the length of the checkpoint {source} fits {fitting} classes, not {classes}, with which it {misfit}",
            next_step=f"Pass --num-classes {fitting}, or omit the option: the number follows from the file's length."
            if known.network is None
            else f"Pass the cfg with which these weights were trained: it has classes={fitting}.",
        ) from error
    assumed = (
        f"activations, anchors and scale_x_y are not in a .weights file: those of the published {known.variant.name}.cfg are "
        "assumed; pass --cfg FILE.cfg for others"
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
    """Return the state dict of a torch or safetensors checkpoint with the options of its network.

    Args:
        state_dict: the file's tensors.
        payload: the records of its pickle; None for a file of tensors alone.
        known: the requested network.
        source: the file's name in messages.

    Raises:
        CheckpointError: it is of another network or number of classes than requested.
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
