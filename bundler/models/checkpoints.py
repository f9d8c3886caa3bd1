"""Where a model's weights come from: published, a user's file, or seeded random ones that say so."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from bundler import console
from bundler.errors import CheckpointError
from bundler.models import torchvision_operators  # noqa: F401  before torchvision
from bundler.models.detector_checkpoints import Architecture, is_detector, read_darknet, read_detector
from bundler.models.detector_file import DetectorFile
from bundler.models.initialization import random_state_dict
from bundler.models.module_tensors import Payload, read_module_tensors, read_payload
from bundler.models.specs import ModelSpec

from torchvision.models import WeightsEnum, get_model_weights, list_models

__all__ = ["LoadedWeights", "load_weights"]

_DARKNET = re.compile(r"\.weights$|\.conv\.\d+$")  # yolov3.weights; darknet53.conv.74
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # how training scripts commonly wrap a state dict


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """A state dict, and what the manifest says of it: source, SHA-256 (of the file where there is one), trained or not.

    `claims` are the accuracies that the file says it has, from 0 to 1, by their names there.
    Of a detector, `options` are the arguments with which its parser builds the network of the file, `class_names` are in the
    file, and `network` says in a sentence what the file states of activations and anchors, or what is assumed.
    """

    state_dict: Mapping[str, Tensor]
    source: str
    sha256: str
    trained: bool
    num_classes: int
    claims: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    network: str | None = None


def load_weights(
    request: str,
    variant: ModelSpec,
    *,
    parser: Callable[..., Any],
    num_classes: int | None,
    pictures: Callable[[], NDArray[np.float32]],
    seed: int,
    cfg: Path | None = None,
) -> LoadedWeights:
    """Resolve `--weights auto|pretrained|random|FILE`.

    `cfg` is Darknet's description of a yolov3 or yolov4. Without `num_classes`, a detector's file tells their number.

    `auto` is the published checkpoint and, where that cannot be reached or has another number of classes, random weights with a
    loud warning. `pictures` gives float32 [N, 3, H, W] for the statistics of random weights and is called only for those.

    Raises:
        CheckpointError: the file is missing, damaged, or no state dict; the published one cannot be had.
    """
    known = Architecture(variant, parser, num_classes=num_classes, cfg=cfg)
    classes = known.classes
    if request == "pretrained":
        return _published(variant, classes)
    if request == "auto":
        try:
            return _published(variant, classes)
        except CheckpointError as error:
            console.warn(f"{error.message}")
            console.warn("the weights are RANDOM: the package will work and mean nothing. Give --weights FILE for your own.")
            request = "random"
    if request == "random":
        state_dict = random_state_dict(
            lambda: parser(num_classes=classes, **known.options), torch.from_numpy(pictures()), seed=seed
        )
        return LoadedWeights(
            state_dict=state_dict,
            source=f"random:{seed}",
            sha256=_digest(state_dict),
            trained=False,
            num_classes=classes,
            options=known.options,
            network=known.network,
        )
    return _from_file(Path(request), known)


def _published(variant: ModelSpec, classes: int) -> LoadedWeights:
    if variant.name not in list_models() or not variant.parser.startswith("bundler.models."):
        raise CheckpointError(
            f"no weights of {variant.name} are published where they can be fetched from",
            next_step="Give a checkpoint: --weights FILE. YOLO: Darknet's .weights, or a .pt of YOLOv5.",
        )
    weights: WeightsEnum = get_model_weights(variant.name).DEFAULT
    if classes != variant.num_classes:
        raise CheckpointError(
            f"the published weights of {variant.name} have {variant.num_classes} classes, not {classes}",
            next_step="Give your own checkpoint: --weights FILE.",
        )
    try:
        with redirect_stdout(sys.stderr):  # torch.hub announces the download on stdout, which is for results
            state_dict = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except OSError as error:  # urllib's URLError and HTTPError are OSErrors
        raise CheckpointError(
            f"the published weights of {variant.name} cannot be reached ({weights.url}: {error})",
            next_step=f"Download the file elsewhere and give --weights FILE, or put it into {_hub_folder()}.",
        ) from error
    except Exception as error:  # a wrong digest, or whatever torch.load finds in a file that lay there already
        raise CheckpointError(
            f"the published weights of {variant.name} are damaged: {_first_sentence(error)}",
            next_step=f"Delete {_hub_folder() / Path(weights.url).name} and run the command again.",
        ) from error
    file = _hub_folder() / Path(weights.url).name
    return LoadedWeights(
        state_dict=state_dict,
        source=f"pretrained:{weights}",
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        trained=True,
        num_classes=classes,
    )


def _hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _from_file(path: Path, known: Architecture) -> LoadedWeights:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be read: {error.strerror}",
            next_step="--weights takes auto, pretrained, random, or the path of a .pth, .pt, .safetensors or .weights file.",
        ) from error
    if _DARKNET.search(path.name):
        found = read_darknet(content, known, source=str(path))
    else:
        state_dict, payload = _tensors_in(path, content)
        found = DetectorFile(state_dict=state_dict, num_classes=known.classes)
        if is_detector(known.variant):
            found = read_detector(state_dict, payload, known, source=str(path))
    return LoadedWeights(
        state_dict=found.state_dict,
        source=path.name,
        sha256=hashlib.sha256(content).hexdigest(),
        trained=True,
        num_classes=found.num_classes,
        claims={},
        options=found.options,
        class_names=found.class_names,
        network=found.network,
    )


def _tensors_in(path: Path, content: bytes) -> tuple[Mapping[str, Tensor], Payload | None]:
    """Return a file's state dict and, where it is a pickle of whole objects, what that describes."""
    if path.suffix == ".pt" and _holds_objects(path):
        tensors = _state_dict_in(read_module_tensors(content, source=str(path)), path)
        return tensors, read_payload(content, source=str(path))
    return _state_dict_in(_tensors(path), path), None


def _tensors(path: Path) -> object:
    try:
        return load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint {path} is damaged or holds more than tensors: {_first_sentence(error)}",
            next_step="Save it again as a state dict: torch.save(model.state_dict(), FILE). Pickled code is never executed.",
        ) from error


def _holds_objects(path: Path) -> bool:
    """Say whether torch's own reader refuses a checkpoint; then it is read without making the objects in it."""
    try:
        _tensors(path)
    except CheckpointError:
        return True
    return False


def _first_sentence(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{lines[0][:160]}" if lines else type(error).__name__


def _state_dict_in(payload: object, path: Path) -> Mapping[str, Tensor]:
    """Take the state dict out of a training script's checkpoint, and DataParallel's prefix off its keys."""
    if isinstance(payload, Mapping):
        for key in _WRAPPERS:
            if isinstance(payload.get(key), Mapping):
                payload = payload[key]
                break
    if not isinstance(payload, Mapping) or not payload or not all(isinstance(value, Tensor) for value in payload.values()):
        raise CheckpointError(
            f"the checkpoint {path} holds no state dict (a mapping from names to tensors)",
            next_step="Save it again as a state dict: torch.save(model.state_dict(), FILE).",
        )
    broken = [key for key, value in payload.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise CheckpointError(
            f"the checkpoint {path} holds values that are not finite, first in {broken[0]}",
            next_step="The training that made it diverged; give an earlier checkpoint.",
        )
    return {str(key).removeprefix("module."): _single_precision(value) for key, value in payload.items()}


def _single_precision(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _digest(state_dict: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(state_dict):
        digest.update(key.encode())
        digest.update(state_dict[key].contiguous().numpy().tobytes())
    return digest.hexdigest()
