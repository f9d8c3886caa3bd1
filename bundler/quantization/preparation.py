"""Fuse → load → prepare: what every model builder of the specification ends with."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from bundler.errors import CheckpointError
from bundler.quantization.clipping import clip_observers
from bundler.quantization.outputs import leave_outputs_unrounded
from bundler.quantization.qconfig import assign_qconfigs, get_platform_aware_qconfig
from bundler.targets import QuantizationProfile

__all__ = ["Quantizable", "load_fuse_prepare"]


class Quantizable(Protocol):
    """What the specification asks of a quantizable model."""

    def fuse_model(self, is_qat: bool | None = None) -> None: ...


Model = TypeVar("Model", bound=nn.Module)
Shapes = dict[str, tuple[int, ...]]


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
    is loaded before fusing, one of the fused model after it; which it is shows in its keys (issue 2; conflicts 1 and 2
    of the specification's text and code).
    With `quantize=False` the model stays a float model, and is fused only where the checkpoint is.

    Raises:
        CheckpointError: the checkpoint fits neither; it names the missing, unexpected and mis-shaped keys.
    """
    model.eval()
    fuse = cast("Quantizable", model).fuse_model
    fused_checkpoint = state_dict is not None and _load_unless_fused(model, state_dict, is_qat=quantize and is_qat)
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


def _load_unless_fused(model: nn.Module, state_dict: Mapping[str, Tensor], *, is_qat: bool) -> bool:
    """Load a checkpoint of the plain model; return True, with nothing loaded, for one of the fused model."""
    given: Shapes = {key: tuple(value.shape) for key, value in state_dict.items()}
    plain = _shapes(model)
    classes_in: Callable[[Shapes], int | None] = getattr(model, "classes_in", lambda _: None)  # a detector's
    if _same_keys(plain, given):
        _refuse_other_shapes(plain, given, classes_in(given))
        model.load_state_dict(dict(state_dict))
        return False
    twin = copy.deepcopy(model).train(is_qat)
    cast("Quantizable", twin).fuse_model(is_qat=is_qat)
    fused = _shapes(twin)
    if _same_keys(fused, given):
        _refuse_other_shapes(fused, given, classes_in(given))
        return True
    raise _foreign(plain, fused, given)


def _shapes(model: nn.Module) -> Shapes:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _same_keys(expected: Shapes, given: Shapes) -> bool:
    # torch writes num_batches_tracked since 0.4.1, and fills it in for older checkpoints by itself.
    missing = {key for key in expected.keys() - given.keys() if not key.endswith("num_batches_tracked")}
    return not missing and not given.keys() - expected.keys()


def _refuse_other_shapes(expected: Shapes, given: Shapes, detected: int | None) -> None:
    """Refuse other shapes; `detected` is the number of classes of a detector's heads, None for other models."""
    wrong = [key for key in expected if key in given and expected[key] != given[key]]
    if not wrong:
        return
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
    raise CheckpointError(
        f"the checkpoint's shapes do not fit: {lines}{more}",
        next_step=f"If it was trained for {classes} classes, add `--num-classes {classes}`."
        if only_head
        else "Choose the model it was trained on.",
    )


def _foreign(plain: Shapes, fused: Shapes, given: Shapes) -> CheckpointError:
    closest = max((plain, fused), key=lambda shapes: len(shapes.keys() & given.keys()))
    form = "fused" if closest is fused else "plain"
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
        next_step="Give the state dict of this model, taken before or after `fuse_model`, and not prepared or converted.",
    )
