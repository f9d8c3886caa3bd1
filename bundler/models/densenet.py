"""DenseNet121, 161, 169 and 201 (Huang et al. 2017); its layers apply BatchNorm before each convolution."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bundler.models.published_weights import Weights, resolve_weights
from bundler.models.quantizable_blocks import Concatenate
from bundler.quantization import (
    DeQuantStub,
    FloatFunctional,
    QuantizationProfile,
    QuantStub,
    fuse_modules,
    load_fuse_prepare,
    make_quantizable,
)

from torchvision.models.densenet import DenseNet, _DenseBlock, _DenseLayer, _Transition

__all__ = ["QuantizableDenseNet", "densenet121", "densenet161", "densenet169", "densenet201"]


class QuantizableDenseLayer(_DenseLayer):  # type: ignore[misc]
    """Concatenation, BatchNorm, 1x1, BatchNorm, 3x3; only the second BatchNorm follows a convolution and can be fused."""

    def __init__(self, layer: _DenseLayer) -> None:
        nn.Module.__init__(self)  # takes over the children of the float layer instead of making new ones
        for name, child in layer.named_children():
            self.add_module(name, child)
        self.drop_rate = layer.drop_rate
        self.memory_efficient = layer.memory_efficient
        self.cat = FloatFunctional()

    def bn_function(self, inputs: list[Tensor]) -> Tensor:
        bottleneck: Tensor = self.conv1(self.relu1(self.norm1(self.cat.cat(inputs, 1))))
        return bottleneck

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return torchvision's `forward` for a list; TorchScript does not compile the overloads of an inherited method."""
        if self.memory_efficient and self.any_requires_grad(features):
            bottleneck: Tensor = self.call_checkpoint_bottleneck(features)
        else:
            bottleneck = self.bn_function(features)
        new: Tensor = self.conv2(self.relu2(self.norm2(bottleneck)))
        if self.drop_rate > 0:
            new = nn.functional.dropout(new, self.drop_rate, self.training)
        return new

    def fuse_model(self, is_qat: bool | None = None) -> None:
        fuse_modules(self, [["norm1", "relu1"], ["conv1", "norm2", "relu2"]], is_qat)


class QuantizableDenseBlock(_DenseBlock):  # type: ignore[misc]
    """A dense block: each layer reads the outputs of all previous ones."""

    def __init__(self, block: _DenseBlock) -> None:
        nn.ModuleDict.__init__(self, {name: QuantizableDenseLayer(layer) for name, layer in block.items()})
        self["cat"] = Concatenate()

    def forward(self, init_features: Tensor) -> Tensor:
        features = [init_features]
        for part in self.values():  # the last one concatenates the outputs of all others
            features.append(part(features))
        return features[-1]


class QuantizableDenseNet(DenseNet):  # type: ignore[misc]
    """torchvision's DenseNet with quantization stubs; a float model until it is converted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, child in list(self.features.named_children()):
            if type(child) is _DenseBlock:
                setattr(self.features, name, QuantizableDenseBlock(child))
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.quant = QuantStub()
        self.dequant = DeQuantStub()
        make_quantizable(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.features(self.quant(x)))
        x = self.avgpool(x).flatten(1)
        logits: Tensor = self.dequant(self.classifier(x))
        return logits

    def fuse_model(self, is_qat: bool | None = None) -> None:
        fuse_modules(self, [["features.conv0", "features.norm0", "features.relu0"], ["features.norm5", "relu"]], is_qat)
        for module in self.modules():
            if type(module) is QuantizableDenseLayer:
                module.fuse_model(is_qat)
            elif type(module) is _Transition:
                fuse_modules(module, ["norm", "relu"], is_qat)


def _densenet(
    growth_rate: int,
    block_config: tuple[int, int, int, int],
    num_init_features: int,
    weights: Weights,
    progress: bool,
    quantize: bool,
    is_qat: bool,
    target: QuantizationProfile | None,
    **kwargs: Any,
) -> QuantizableDenseNet:
    state_dict, options = resolve_weights(weights, kwargs, progress=progress)
    model = QuantizableDenseNet(growth_rate, block_config, num_init_features, **options)
    return load_fuse_prepare(model, _renamed(state_dict), quantize=quantize, is_qat=is_qat, target=target)


def _renamed(state_dict: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
    """Rename keys of the published state dicts, which are older than torch's ban on dots in names: `norm.1` to `norm1`."""
    if state_dict is None:
        return None
    pattern = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
    return {pattern.sub(r"\1\2", str(key)): value for key, value in state_dict.items()}


def densenet121(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableDenseNet:
    return _densenet(32, (6, 12, 24, 16), 64, weights, progress, quantize, is_qat, target, **kwargs)


def densenet161(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableDenseNet:
    return _densenet(48, (6, 12, 36, 24), 96, weights, progress, quantize, is_qat, target, **kwargs)


def densenet169(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableDenseNet:
    return _densenet(32, (6, 12, 32, 32), 64, weights, progress, quantize, is_qat, target, **kwargs)


def densenet201(
    *,
    weights: Weights = None,
    progress: bool = True,
    quantize: bool = False,
    is_qat: bool = False,
    target: QuantizationProfile | None = None,
    **kwargs: Any,
) -> QuantizableDenseNet:
    return _densenet(32, (6, 12, 48, 32), 64, weights, progress, quantize, is_qat, target, **kwargs)
