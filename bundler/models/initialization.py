"""Seeded random weights whose outputs vary with the image.

A freshly initialised MobileNet outputs almost exactly zero, so that a comparison of outputs would detect no error. Here
BatchNorms get the statistics of forward passes, and the classifier or the detection heads are scaled to a realistic spread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bundler.models.detector import BOX, Detector
from bundler.quantization.precision import double_precision

__all__ = ["random_state_dict"]

LOGIT_DEVIATION = 2.0  # standard deviation of the logits, as in a trained classifier and far above rounding errors
BOX_DEVIATION = 0.5  # standard deviation of raw boxes: sizes of about half to twice the anchors
BACKGROUND = -3.0  # mean of raw objectness: most cells contain no object
BRANCH = 0.1  # scale of a residual branch's last BatchNorm, as in the later blocks of trained networks


def random_state_dict(build: Callable[[], nn.Module], images: Tensor, *, seed: int) -> Mapping[str, Tensor]:
    """Return a state dict of the model that `build` makes.

    Args:
        build: returns the float model; it is called with a seeded generator.
        images: float32 [N, 3, H, W], normalised, N ≥ 8; used for the statistics of BatchNorms and the spread of outputs.
        seed: of the weights; the global random state is not changed.
    """
    images = images.double()
    with torch.random.fork_rng(devices=[]), double_precision():  # the same values on every machine
        torch.manual_seed(seed)
        model = build().double()
        _make_depthwise_positive(model)
        _set_batch_norms(model, images)
        if isinstance(model, Detector):
            for layer in model.prediction_layers():
                _spread_predictions(layer, model, images)
        else:
            _spread_classifier(model, images)
        model.float()
    return {key: value.clone() for key, value in model.state_dict().items()}


def _make_depthwise_positive(model: nn.Module) -> None:
    """Make depthwise weights positive, so that they smooth; with random signs they amplify noise as much as the image."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            with torch.no_grad():
                module.weight.abs_()


def _last_norms_of_branches(model: nn.Module) -> set[nn.BatchNorm2d]:
    """Return the BatchNorm before each residual addition `skip_add`, which no activation follows."""
    blocks = [block for block in model.modules() if hasattr(block, "skip_add")]
    return {[norm for norm in block.modules() if isinstance(norm, nn.BatchNorm2d)][-1] for block in blocks}


def _set_batch_norms(model: nn.Module, images: Tensor) -> None:
    """Set each BatchNorm to the statistics of its inputs, with weights and biases that keep rounding errors from growing.

    Weights proportional to each channel's deviation keep the fused weights of a layer in one range, a bias near 1 keeps most
    inputs of each activation positive, and small residual branches let the identity path dominate. Otherwise random networks
    amplify rounding errors from layer to layer until the INT8 outputs are noise.
    """
    branches = _last_norms_of_branches(model)

    def set_parameters(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not isinstance(norm, nn.BatchNorm2d) or norm.num_batches_tracked is None or norm.num_batches_tracked > 0:
            return
        variance = inputs[0].detach().var((0, 2, 3))
        relative = (variance / variance.mean()).sqrt().clamp(0.1, 2.0)
        share = BRANCH if norm in branches else 1.0
        with torch.no_grad():
            norm.weight.copy_(share * relative * torch.empty_like(relative).uniform_(0.8, 1.2))
            norm.bias.uniform_(0.8, 1.2).mul_(share)

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(set_parameters) for norm in norms]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a cumulative average over the batches instead of an exponential one
        norm.reset_running_stats()
    model.train()
    with torch.no_grad():
        for batch in images.split(8):
            model(batch)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for hook in hooks:
        hook.remove()


def _inputs_of(layer: nn.Module, model: nn.Module, images: Tensor) -> Tensor:
    """Return the inputs of a layer, float64 [images (times cells), channels]."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        features = inputs[0]
        seen.append(features if features.ndim == 2 else features.permute(0, 2, 3, 1).flatten(0, 2))

    hook = layer.register_forward_pre_hook(keep)
    with torch.no_grad():
        for batch in images.split(8):
            model(batch)
    hook.remove()
    return torch.cat(seen)


def _spread_classifier(model: nn.Module, images: Tensor) -> None:
    classifier = next(module for module in reversed(list(model.modules())) if isinstance(module, nn.Linear))
    seen = _inputs_of(classifier, model, images)
    with torch.no_grad():
        logits = (seen - seen.mean(0)) @ classifier.weight.T
        classifier.weight *= LOGIT_DEVIATION / logits.std()
        classifier.bias.copy_(-(seen.mean(0) @ classifier.weight.T))


def _spread_predictions(layer: nn.Conv2d, model: Detector, images: Tensor) -> None:
    """Scale each raw output [anchors · (5 + classes)] of a detection head to its deviation over images and cells."""
    seen = _inputs_of(layer, model, images)
    deviation, mean = torch.full((BOX + model.num_classes,), LOGIT_DEVIATION), torch.zeros(BOX + model.num_classes)
    deviation[: BOX - 1] = BOX_DEVIATION
    mean[BOX - 1] = BACKGROUND
    anchors = layer.out_channels // len(mean)
    with torch.no_grad():
        weight = layer.weight.flatten(1)
        raw = (seen - seen.mean(0)) @ weight.T
        weight *= (deviation.repeat(anchors) / raw.std(0)).unsqueeze(1)
        if layer.bias is not None:
            layer.bias.copy_(mean.repeat(anchors) - seen.mean(0) @ weight.T)
