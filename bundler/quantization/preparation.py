"""Load, fuse and prepare: the last step of every model builder (docs/specification.md), and the checks of its checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from bundler.errors import CheckpointError
from bundler.quantization.clipping import clip_observers
from bundler.quantization.eager import disable_output_fake_quant
from bundler.quantization.key_matching import find_matches
from bundler.quantization.qconfig import assign_qconfigs, get_platform_aware_qconfig
from bundler.quantization.weight_names import Shapes, fused_naming, is_optional, observer_key, shapes_of, training_naming
from bundler.targets import QuantizationProfile

__all__ = ["Quantizable", "foreign_keys", "load_fuse_prepare", "other_shapes"]


class Quantizable(Protocol):
    """A model that can fuse its modules in place (docs/specification.md)."""

    def fuse_model(self, is_qat: bool | None = None) -> None: ...


_STATE_DICT = "Use a mapping from names to tensors: model.state_dict()."

Model = TypeVar("Model", bound=nn.Module)


def load_fuse_prepare(
    model: Model,
    state_dict: Mapping[str, Tensor] | None,
    *,
    quantize: bool,
    is_qat: bool,
    target: QuantizationProfile | None,
) -> Model:
    """Load the weights, fuse, and prepare for PTQ or QAT, in place.

    Weights are loaded before `prepare`, so that weight observers record them: those of the plain model before fusing, those of
    the fused model after it. The keys decide which of them a checkpoint has. Of a model that was prepared for QAT, the float
    weights are loaded.

    Args:
        model: a plain float model.
        state_dict: its weights, from before or after `fuse_model`; None to keep those of the model. It is not changed.
        quantize: whether to fuse and prepare; otherwise the model stays a float model, and is fused only if the checkpoint is.
        is_qat: whether to prepare for QAT (the model is then in train mode) or PTQ (eval mode).
        target: engine, qconfig and options; None for torch's default for the host.

    Returns:
        The model.

    Raises:
        CheckpointError: the checkpoint is of another or of a converted model. The message has the missing and unexpected keys
            and those with another shape.
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
            # Torch's default qconfig uses `reduce_range`, for which its observers emit a warning.
            warnings.filterwarnings("ignore", "Please use quant_min and quant_max to specify the range", UserWarning)
            prepare(model, inplace=True)
        if is_qat:
            disable_output_fake_quant(model)
    return model


def _load_unless_fused(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, is_qat: bool
) -> tuple[Mapping[str, Tensor], bool]:
    """Load a checkpoint of the plain model, or of one prepared for QAT; do not load one of the fused model.

    Returns:
        The float weights, with the names of the plain or of the fused model; and whether they are of the fused model.
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
            "the checkpoint is of the fused model, in which each BatchNorm is folded into its convolution; quantization-aware "
            "training needs the BatchNorms",
            next_step="Use the state dict from before `fuse_model`, or build without the mode int8-qat.",
        )
    raise foreign_keys(plain, fused, given=given)


def _refuse_converted(state_dict: Mapping[Any, object]) -> None:
    """Raise a CheckpointError if this is not the state dict of a float model."""
    for key, value in state_dict.items():
        if not isinstance(key, str):
            raise CheckpointError(f"the weights are not a state dict: the key {key!r} is not a string", next_step=_STATE_DICT)
        quantized = isinstance(value, Tensor) and value.is_quantized
        if quantized or key.rpartition(".")[2] == "_packed_params":
            raise CheckpointError(
                f"the state dict is of an already quantized (converted) model: {key} is quantized",
                next_step="Use the state dict of the float model, from before `convert`.",
            )
    for key, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"the weights are not a state dict: {key!r} is of the type {type(value).__name__}, not a tensor",
                next_step=_STATE_DICT,
            )


def _same_keys(expected: Shapes, given: Shapes) -> bool:
    missing = {key for key in expected.keys() - given.keys() if not is_optional(key)}
    return not missing and not given.keys() - expected.keys()


def _refuse_other_shapes(expected: Shapes, given: Shapes, detected: int | None) -> None:
    """Raise `other_shapes` if a shape differs."""
    if any(expected[key] != given[key] for key in expected if key in given):
        raise other_shapes(expected, given, detected)


def other_shapes(expected: Shapes, given: Shapes, detected: int | None = None) -> CheckpointError:
    """Return the error for a checkpoint that has the keys of the model with other shapes.

    Args:
        expected: of the model.
        given: of the checkpoint.
        detected: the number of classes of the checkpoint's detection heads; None for models that are not detectors.
    """
    wrong = [key for key in expected if key in given and expected[key] != given[key]]
    lines = "; ".join(
        f"{key} is {list(given[key])} in the checkpoint and {list(expected[key])} in the model" for key in wrong[:4]
    )
    more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
    classes = given[wrong[-1]][0] if given[wrong[-1]] else 0
    # The most common case: only the weight and bias of the last layer differ, that is the number of classes.
    head = list(expected)[-1].rpartition(".")[0]
    only_head = {key.rpartition(".")[0] for key in wrong} == {head}
    if detected is not None and all(expected[key][1:] == given[key][1:] for key in wrong):  # detection heads, one per scale
        classes, only_head = detected, True
    return CheckpointError(
        f"the checkpoint has other shapes than the model: {lines}{more}",
        next_step=f"If it was trained for {classes} classes, add `--num-classes {classes}`."
        if only_head
        else "Choose the model that was trained.",
    )


def foreign_keys(plain: Shapes, fused: Shapes | None = None, *, given: Shapes) -> CheckpointError:
    """Return the error for a checkpoint that has neither the keys of the plain nor those of the fused model."""
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
        facts.append(f"{len(shapes)} with another shape ({key}: {list(given[key])}, expected {list(closest[key])})")
    if missing and not unexpected and not shapes:
        return CheckpointError(
            f"the checkpoint has only a part of the network, or is of a smaller one; keys compared with the {form} model: "
            f"{', '.join(facts)}",
            next_step="Choose the model that was trained. A backbone without a head must be trained as a whole first.",
        )
    return CheckpointError(
        f"the checkpoint is of another network; keys compared with the {form} model: {', '.join(facts)}",
        next_step="Use the state dict of this model, from before or after `fuse_model`, and before `convert`.",
    )
