"""Load a model's weights: published by torchvision, from a user's checkpoint, or seeded random ones."""

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
from torch import Tensor

from bundler import console
from bundler.errors import CheckpointError
from bundler.models import torchvision_operators  # noqa: F401  before torchvision
from bundler.models.checkpoint_file import CheckpointFile
from bundler.models.checkpoint_weights import Network, network_of, weights_in
from bundler.models.claims import claims_in, mapping_of
from bundler.models.detector_checkpoints import Architecture, is_detector, read_darknet, read_detector
from bundler.models.detector_file import DetectorFile
from bundler.models.initialization import random_state_dict
from bundler.models.module_tensors import preferred
from bundler.models.other_names import relative
from bundler.models.pickled_modules import Payload
from bundler.models.specs import ModelSpec
from bundler.models.weight_checks import float_weights
from bundler.quantization.weight_names import observer_key
from bundler.visible import visible

from torchvision.models import WeightsEnum, get_model_weights, list_models

__all__ = ["LoadedWeights", "load_weights"]

_DARKNET = re.compile(r"\.weights$|\.conv\.\d+$")  # yolov3.weights; darknet53.conv.74


_DELETE = "Delete {} and run the command again."


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """A state dict, and what the manifest records about it.

    Args:
        state_dict: with the keys of the model.
        source: "pretrained:…", "random:SEED", or the file's name.
        sha256: of the file, or of the keys and values of random weights.
        trained: False for random weights.
        num_classes: of the model that the weights fit.
        claims: accuracies that the file states, from 0 to 1, by their names in it.
        options: keyword arguments with which a detector's parser builds the network of the file.
        class_names: of a detector, if the file has them.
        network: one sentence about a detector: activations and anchors in the file, or the assumed ones.
        notes: what was taken from the file and what was ignored, one line each.
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
    notes: tuple[str, ...] = ()


def load_weights(
    request: str,
    variant: ModelSpec,
    *,
    parser: Callable[..., Any],
    num_classes: int | None,
    pictures: Callable[[], NDArray[np.float32]],
    seed: int,
    cfg: Path | None = None,
    key: str | None = None,
) -> LoadedWeights:
    """Resolve `--weights auto|pretrained|random|FILE`.

    The format of a file is recognized by its content, not by its name. `auto` is the published checkpoint; if that cannot be
    downloaded or has another number of classes, random weights are used after a warning.

    Args:
        request: the value of `--weights`.
        variant: of the model.
        parser: the model parser of the variant.
        num_classes: value of `--num-classes`; None to take the number from the file's last layer.
        pictures: returns normalised images, float32 [N, 3, H, W], N ≥ 8, for the BatchNorm statistics of random weights; it is
            called only for those.
        seed: of random weights.
        cfg: Darknet's cfg of a yolov3 or yolov4.
        key: which weights to take from a file that holds several state dicts.

    Raises:
        CheckpointError: the file is missing, damaged, of another network or of an unsupported format; or the published
            checkpoint is not available.
    """
    known = Architecture(variant, parser, num_classes=num_classes, cfg=cfg)
    classes = known.classes
    if request == "pretrained":
        return _published(variant, parser, classes)
    if request == "auto":
        try:
            return _published(variant, parser, classes)
        except CheckpointError as error:
            console.warn(f"{error.message}")
            console.warn("using random weights: predictions are meaningless; pass --weights FILE")
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
    return _from_file(Path(request), known, key)


def _published(variant: ModelSpec, parser: Callable[..., Any], classes: int) -> LoadedWeights:
    if variant.name not in list_models() or not variant.parser.startswith("bundler.models."):
        raise CheckpointError(
            f"there are no published weights of {variant.name}",
            next_step="Pass a checkpoint: --weights FILE (Darknet's .weights for yolov3 and yolov4, a .pt of YOLOv5).",
        )
    weights: WeightsEnum = get_model_weights(variant.name).DEFAULT
    if classes != variant.num_classes:
        raise CheckpointError(
            f"the published weights of {variant.name} have {variant.num_classes} classes, not {classes}",
            next_step="Pass your own checkpoint: --weights FILE.",
        )
    file = _hub_folder() / Path(weights.url).name
    try:
        if not file.exists():
            _download(weights.url, file)
        state_dict, digest = _published_state_dict(file, variant, parser)
    except CheckpointError as error:
        raise CheckpointError(
            f"the published weights of {variant.name} are damaged: {error.message}", next_step=_DELETE.format(file)
        ) from error
    except OSError as error:  # urllib's URLError and HTTPError are OSErrors
        raise CheckpointError(
            f"the published weights of {variant.name} cannot be downloaded ({weights.url}: {error})",
            next_step=f"Download the file on another machine and pass --weights FILE, or copy it into {_hub_folder()}.",
        ) from error
    except RuntimeError as error:  # torch.hub's, for a wrong digest
        raise CheckpointError(
            f"the published weights of {variant.name} are damaged: {visible(error, 160)}", next_step=_DELETE.format(file)
        ) from error
    return LoadedWeights(
        state_dict=state_dict, source=f"pretrained:{weights}", sha256=digest, trained=True, num_classes=classes
    )


def _download(url: str, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    digest = torch.hub.HASH_REGEX.search(file.name)
    with redirect_stdout(sys.stderr):  # stdout is for results
        torch.hub.download_url_to_file(url, str(file), hash_prefix=digest.group(1) if digest else None, progress=True)


def _published_state_dict(file: Path, variant: ModelSpec, parser: Callable[..., Any]) -> tuple[Mapping[str, Tensor], str]:
    """Return the state dict of a published checkpoint, read under the same limits as any other file, and its SHA-256."""
    network = network_of(
        variant.name,
        lambda classes: parser(num_classes=classes),
        num_classes=variant.num_classes,
        asked_classes=variant.num_classes,
        is_ours=True,
    )
    with CheckpointFile(file, model_bytes=network.bytes) as opened:
        return weights_in(opened, network, key=None).tensors, opened.sha256()


def _hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _from_file(path: Path, known: Architecture, key: str | None) -> LoadedWeights:
    network = network_of(
        known.variant.name,
        lambda classes: known.parser(num_classes=classes, **known.options),
        num_classes=known.classes,
        asked_classes=known.num_classes,
        is_ours=known.variant.parser.startswith("bundler.models."),
    )
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    with CheckpointFile(path, model_bytes=network.bytes) as file:
        if file.kind in ("unknown", "zeros"):
            found = _darknet(file, known, network)
        elif is_detector(known.variant):
            file.refuse_large()
            found, notes = _detector(file, known)
        else:
            file.refuse_large()
            weights = weights_in(file, network, key=key)
            found = DetectorFile(state_dict=weights.tensors, num_classes=weights.num_classes)
            notes, warnings = weights.notes, weights.warnings
        kinds = {name: value.dtype for name, value in known.build(found.num_classes, found.options).state_dict().items()}
        state_dict, more = float_weights(found.state_dict, kinds, source=file.named)
        for warning in (*warnings, *more):
            console.warn(f"{path.name}: {warning}")
        return LoadedWeights(
            state_dict=state_dict,
            source=path.name,
            sha256=file.sha256(),
            trained=True,
            num_classes=found.num_classes,
            claims=claims_in(mapping_of(file.description)),
            options=found.options,
            class_names=found.class_names,
            network=found.network,
            notes=notes if file.inner is None else (f"read from the archive: {visible(file.inner, 300)}", *notes),
        )


def _detector(file: CheckpointFile, known: Architecture) -> tuple[DetectorFile, tuple[str, ...]]:
    """Return the content of a detector's checkpoint; of several state dicts, the one that YOLOv5's own loader takes.

    The network is built from the file's description, so that its tensors are loaded before they are compared with a network.
    """
    candidate = preferred(file.candidates)
    if candidate is None:
        raise CheckpointError(
            f"the checkpoint {file.named} contains no state dict (a mapping from names to tensors) and no module with tensors",
            next_step="Save the weights as a state dict: torch.save(model.state_dict(), FILE).",
        )
    last = next(reversed(known.build(known.classes).state_dict()))
    prefixes = {name.removesuffix(last) for name in candidate.tensors if name.endswith(last)}
    prefix = prefixes.pop() if len(prefixes) == 1 and not candidate.is_module else ""
    kept = {name.removeprefix(prefix): record for name, record in candidate.tensors.items() if name.startswith(prefix)}
    loaded = file.load({name: record for name, record in kept.items() if not observer_key(name)})
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in loaded.items()}
    own = known.shapes(known.classes)
    if (what := relative(tensors, own)) is not None and not own.keys() & tensors.keys():
        raise CheckpointError(
            f"the checkpoint {file.named} is not of {known.variant.name} but of {what}",
            next_step="Choose the model it was trained on.",
        )
    payload = Payload(description=file.description, tensor=file.tensor) if candidate.is_module else None
    notes = [f"weights: {visible(candidate.path, 60)} of the file"] if candidate.path else []
    notes += [f"prefix {visible(prefix, 60)!r} removed from {len(kept)} keys"] if prefix else []
    return read_detector(tensors, payload, known, source=file.named), tuple(notes)


def _darknet(file: CheckpointFile, known: Architecture, network: Network) -> DetectorFile:
    """Read a Darknet file. The format has no magic number: it is recognized by the file's name, or by a plausible header."""
    named = _DARKNET.search(file.inner or file.path.name) is not None
    if not named and (file.kind == "zeros" or not hasattr(network.model, "darknet_layers")):
        what = "begins with zeros, like an incomplete download" if file.kind == "zeros" else "is of an unknown format"
        raise CheckpointError(
            f"the checkpoint {file.named} {what}",
            next_step="Pass a file written by torch.save or safetensors, or Darknet's .weights for yolov3 and yolov4.",
        )
    return read_darknet(file.content(), known, source=file.named)


def _digest(state_dict: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(state_dict):
        digest.update(key.encode())
        digest.update(state_dict[key].contiguous().numpy().tobytes())
    return digest.hexdigest()
