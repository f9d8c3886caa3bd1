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
from bundler.models.claims import claims_in
from bundler.models.darknet_weights import read_darknet_weights
from bundler.models.initialization import random_state_dict
from bundler.models.module_tensors import read_module_tensors
from bundler.models.specs import ModelSpec

from torchvision.models import WeightsEnum, get_model_weights, list_models

__all__ = ["LoadedWeights", "load_weights"]

_DARKNET = re.compile(r"\.weights$|\.conv\.\d+$")  # yolov3.weights; darknet53.conv.74
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # how training scripts commonly wrap a state dict


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """A state dict, and what the manifest says of it: source, SHA-256 (of the file where there is one), trained or not.

    `claims` are the accuracies that the file says it has, from 0 to 1, by their names there.
    """

    state_dict: Mapping[str, Tensor]
    source: str
    sha256: str
    trained: bool
    num_classes: int
    claims: Mapping[str, float] = field(default_factory=dict)


def load_weights(
    request: str,
    variant: ModelSpec,
    *,
    parser: Callable[..., Any],
    num_classes: int | None,
    pictures: Callable[[], NDArray[np.float32]],
    seed: int,
) -> LoadedWeights:
    """Resolve `--weights auto|pretrained|random|FILE`.

    `auto` is the published checkpoint and, where that cannot be reached or has another number of classes, random weights with a
    loud warning. `pictures` gives float32 [N, 3, H, W] for the statistics of random weights and is called only for those.

    Raises:
        CheckpointError: the file is missing, damaged, or no state dict; the published one cannot be had.
    """
    classes = variant.num_classes if num_classes is None else num_classes
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
        state_dict = random_state_dict(lambda: parser(num_classes=classes), torch.from_numpy(pictures()), seed=seed)
        return LoadedWeights(
            state_dict=state_dict, source=f"random:{seed}", sha256=_digest(state_dict), trained=False, num_classes=classes
        )
    return _from_file(Path(request), variant, parser, classes)


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


def _from_file(path: Path, variant: ModelSpec, parser: Callable[..., Any], classes: int) -> LoadedWeights:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be read: {error.strerror}",
            next_step="--weights takes auto, pretrained, random, or the path of a .pth, .pt, .safetensors or .weights file.",
        ) from error
    payload: object
    if _DARKNET.search(path.name):
        payload = _darknet(path, content, variant, parser, classes)
    elif path.suffix == ".pt" and _holds_objects(path):
        payload = read_module_tensors(content, source=str(path))
    else:
        payload = _tensors(path)
    return LoadedWeights(
        state_dict=_state_dict_in(payload, path),
        source=path.name,
        sha256=hashlib.sha256(content).hexdigest(),
        trained=True,
        num_classes=classes,
        claims=claims_in(payload),
    )


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


def _darknet(path: Path, content: bytes, variant: ModelSpec, parser: Callable[..., Any], classes: int) -> Mapping[str, Tensor]:
    model = parser(num_classes=classes)
    if not hasattr(model, "darknet_layers"):
        raise CheckpointError(
            f"{path} is a Darknet file, and {variant.name} is no network of Darknet's",
            next_step="Give a .pth, .pt or .safetensors file; .weights are for yolov3 and yolov4.",
        )
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    return read_darknet_weights(content, model.darknet_layers(), shapes, source=str(path))


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
