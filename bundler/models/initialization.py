"""Seeded random weights with which a network still tells pictures apart.

A freshly initialised MobileNet outputs almost exactly zero, so any comparison of its outputs holds for any bug. Here BatchNorm
gets the statistics of real forward passes, and the classifier a visible spread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["random_state_dict"]

LOGIT_DEVIATION = 2.0  # of each class over the pictures: like a trained classifier's, far above float rounding


def random_state_dict(build: Callable[[], nn.Module], pictures: Tensor, *, seed: int) -> Mapping[str, Tensor]:
    """Return a state dict of the plain model that `build` makes.

    Args:
        build: returns the float model; its own initialisation is seeded.
        pictures: float32 [N, 3, H, W], normalised, N ≥ 8; BatchNorm's statistics and the classifier's spread come from them.
        seed: of the weights; the caller's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        _take_batch_statistics(model, pictures)
    _spread_classifier(model, pictures)
    return {key: value.clone() for key, value in model.state_dict().items()}


def _take_batch_statistics(model: nn.Module, pictures: Tensor) -> None:
    """Give each BatchNorm the statistics of its inputs, and an affine part with which the network stays calm.

    A scale that follows each channel's deviation keeps the folded weights of a layer alike, and a bias near 1 keeps most inputs
    of each ReLU positive. Without both, random networks amplify rounding errors from layer to layer until INT8 is noise.
    """

    def settle(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not isinstance(norm, nn.BatchNorm2d) or norm.num_batches_tracked is None or norm.num_batches_tracked > 0:
            return
        variance = inputs[0].detach().var((0, 2, 3))
        relative = (variance / variance.mean()).sqrt().clamp(0.1, 2.0)
        with torch.no_grad():
            norm.weight.copy_(relative * torch.empty_like(relative).uniform_(0.8, 1.2))
            norm.bias.uniform_(0.8, 1.2)

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(settle) for norm in norms]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a plain average over the batches instead of one that decays
        norm.reset_running_stats()
    model.train()
    with torch.no_grad():
        for batch in pictures.split(8):
            model(batch)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for hook in hooks:
        hook.remove()


def _spread_classifier(model: nn.Module, pictures: Tensor) -> None:
    classifier = next(module for module in reversed(list(model.modules())) if isinstance(module, nn.Linear))
    features: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        features.append(inputs[0])

    hook = classifier.register_forward_pre_hook(keep)
    with torch.no_grad():
        for batch in pictures.split(8):
            model(batch)
        hook.remove()
        seen = torch.cat(features)
        logits = (seen - seen.mean(0)) @ classifier.weight.T
        classifier.weight *= LOGIT_DEVIATION / logits.std()
        classifier.bias.copy_(-(seen.mean(0) @ classifier.weight.T))
