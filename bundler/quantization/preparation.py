"""Fuse → load → prepare: what every model builder of the specification ends with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from bundler.errors import CheckpointError
from bundler.quantization.clipping import clip_observers
from bundler.quantization.key_matching import find_matches
from bundler.quantization.output_observers import leave_outputs_unrounded
from bundler.quantization.qconfig import assign_qconfigs, get_platform_aware_qconfig
from bundler.quantization.weight_names import Shapes, fused_naming, is_optional, observer_key, shapes_of, training_naming
from bundler.targets import QuantizationProfile

__all__ = ["Quantizable", "foreign_keys", "load_fuse_prepare", "other_shapes"]


class Quantizable(Protocol):
    """What the specification asks of a quantizable model."""

    def fuse_model(self, is_qat: bool | None = None) -> None: ...


_STATE_DICT = "Give a mapping from names to tensors: model.state_dict()."

Model = TypeVar("Model", bound=nn.Module)


def load_fuse_prepare(
    model: Model,
    state_dict: Mapping[str, Tensor] | None,
    *,
    quantize: bool,
    is_qat: bool,
    target: QuantizationProfile | None,
) -> Model:
    """Load the weights, fuse, and prepare for calibration (PTQ, eval mode) or training (QAT, train mode).

    The weights are in place before `prepare`, so that observers of weights see the real ones. A checkpoint of the plain model
    is loaded before fusing, one of the fused model after it; which it is shows in its keys. Of a model that was prepared for
    training, the float weights are taken.
    With `quantize=False` the model stays a float model, and is fused only where the checkpoint is.

    Raises:
        CheckpointError: the checkpoint fits neither, or is of a converted model; it names the missing, unexpected and
            mis-shaped keys.
    """
    model.eval()
    fuse = cast("Quantizable", model).fuse_model
    fused_checkpoint = False
    if state_dict is not None:
        state_dict, fused_checkpoint = _load_unless_fused(model, state_dict, is_qat=quantize and is_qat)
    if quantize or fused_checkpoint:
        if quantize and is_qat:
            model.train()
        fuse(is_qat=quantize and is_qat)
    if state_dict is not None and fused_checkpoint:
        model.load_state_dict(dict(state_dict))
    if quantize:
        assign_qconfigs(model, get_platform_aware_qconfig(target), is_qat=is_qat)
        clip_observers(model)
        prepare: Callable[..., nn.Module] = torch.ao.quantization.prepare_qat if is_qat else torch.ao.quantization.prepare
        with warnings.catch_warnings():
            # Torch's own default qconfig asks its observers for `reduce_range`, and they advise against it.
            warnings.filterwarnings("ignore", "Please use quant_min and quant_max to specify the range", UserWarning)
            prepare(model, inplace=True)
        if is_qat:
            leave_outputs_unrounded(model)
    return model


def _load_unless_fused(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, is_qat: bool
) -> tuple[Mapping[str, Tensor], bool]:
    """Load a checkpoint of the plain model; for one of the fused model, return True, with nothing loaded.

    A checkpoint of a model that was prepared for training holds the plain model's weights under other names. What is returned
    first has the names of the plain or of the fused model.
    """
    _refuse_converted(state_dict)
    state_dict = {key: value for key, value in state_dict.items() if not observer_key(key)}
    given = shapes_of(state_dict)
    plain = shapes_of(model.state_dict())
    classes_in: Callable[[Shapes], int | None] = getattr(model, "classes_in", lambda _: None)  # a detector's
    if _same_keys(plain, given):
        _refuse_other_shapes(plain, given, classes_in(given))
        model.load_state_dict(dict(state_dict))
        return state_dict, False
    fused = fused_naming(model, is_qat=is_qat).shapes
    if _same_keys(fused, given):
        _refuse_other_shapes(fused, given, classes_in(given))
        return state_dict, True
    for match in find_matches(training_naming(model), given):
        if not match.prefix and not match.parts and not match.renamed and not match.others(given):
            renamed = {key: state_dict[full] for key, full in match.keys.items()}
            _refuse_other_shapes(plain, shapes_of(renamed), classes_in(shapes_of(renamed)))
            model.load_state_dict(renamed)
            return renamed, False
    if is_qat and _same_keys(fused_naming(model, is_qat=False).shapes, given):
        raise CheckpointError(
            "the checkpoint is of the fused model, in which each BatchNorm is folded into its convolution; training for INT8 "
            "needs the BatchNorms",
            next_step="Give the state dict of the model from before `fuse_model`, or leave int8-qat out.",
        )
    raise foreign_keys(plain, fused, given=given)


def _refuse_converted(state_dict: Mapping[Any, object]) -> None:
    """Raise a CheckpointError for what is no state dict of a float model: parts of a converted one, or no tensors at all."""
    for key, value in state_dict.items():
        if not isinstance(key, str):
            raise CheckpointError(f"the weights are no state dict: {key!r} is no name", next_step=_STATE_DICT)
        quantized = isinstance(value, Tensor) and value.is_quantized
        if quantized or key.rpartition(".")[2] == "_packed_params":
            raise CheckpointError(
                f"the state dict is of an already quantized (converted) model: {key} is quantized",
                next_step="Give the state dict of the float model, from before `convert`; the weights are quantized here.",
            )
    for key, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"the weights are no state dict: {key!r} is of the type {type(value).__name__}, not a tensor",
                next_step=_STATE_DICT,
            )


def _same_keys(expected: Shapes, given: Shapes) -> bool:
    missing = {key for key in expected.keys() - given.keys() if not is_optional(key)}
    return not missing and not given.keys() - expected.keys()


def _refuse_other_shapes(expected: Shapes, given: Shapes, detected: int | None) -> None:
    """Refuse other shapes; `detected` is the number of classes of a detector's heads, None for other models."""
    if any(expected[key] != given[key] for key in expected if key in given):
        raise other_shapes(expected, given, detected)


def other_shapes(expected: Shapes, given: Shapes, detected: int | None = None) -> CheckpointError:
    """Return the error for a checkpoint with the keys of the model, and other shapes; `detected` as above."""
    wrong = [key for key in expected if key in given and expected[key] != given[key]]
    lines = "; ".join(
        f"{key} is {list(given[key])} in the checkpoint and {list(expected[key])} in the model" for key in wrong[:4]
    )
    more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
    classes = given[wrong[-1]][0] if given[wrong[-1]] else 0
    # Only the last layer differs (its weight and bias): another number of classes, the commonest case of all.
    head = list(expected)[-1].rpartition(".")[0]
    only_head = {key.rpartition(".")[0] for key in wrong} == {head}
    if detected is not None and all(expected[key][1:] == given[key][1:] for key in wrong):  # its heads, one for each scale
        classes, only_head = detected, True
    return CheckpointError(
        f"the checkpoint's shapes do not fit: {lines}{more}",
        next_step=f"If it was trained for {classes} classes, add `--num-classes {classes}`."
        if only_head
        else "Choose the model it was trained on.",
    )


def foreign_keys(plain: Shapes, fused: Shapes | None = None, *, given: Shapes) -> CheckpointError:
    """Return the error for a checkpoint that has neither the keys of the plain model nor those of the fused one."""
    fused = plain if fused is None else fused
    closest = max((plain, fused), key=lambda shapes: len(shapes.keys() & given.keys()))
    form = "plain" if closest is plain else "fused"
    missing, unexpected = sorted(closest.keys() - given.keys()), sorted(given.keys() - closest.keys())
    facts = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    shapes = [key for key in sorted(closest.keys() & given.keys()) if closest[key] != given[key]]
    if shapes:
        key = shapes[0]
        facts.append(f"{len(shapes)} mis-shaped ({key}: {list(given[key])}, expected {list(closest[key])})")
    if missing and not unexpected and not shapes:
        return CheckpointError(
            f"the checkpoint holds a part of the network, or a smaller one; against the {form} model it has {', '.join(facts)}",
            next_step="Choose the model it was trained on; a backbone alone needs its training as a whole first.",
        )
    return CheckpointError(
        f"the checkpoint belongs to another network; against the {form} model it has {', '.join(facts)}",
        next_step="Give the state dict of this model, taken before or after `fuse_model`, and not converted.",
    )
