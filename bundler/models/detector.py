"""Base classes of the YOLO detectors: convolution blocks, the decoding of boxes, and the INT8 scope."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bundler.models.activation_modules import make_activation
from bundler.models.darknet_weights import DarknetLayer
from bundler.models.quantizable_blocks import Concatenate
from bundler.models.specs import Int8Scope
from bundler.quantization import DeQuantStub, FloatFunctional, QuantStub, fuse_modules, make_quantizable

__all__ = ["BOX", "Concatenate", "ConvNormAct", "Detector", "QuantizableDetector", "Residual", "darknet_layers"]

BOX = 5  # values before the class probabilities: centre x, centre y, width, height, objectness


class ConvNormAct(nn.Module):
    """Convolution without bias, BatchNorm, activation; "same" padding."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        activation: Callable[[], nn.Module],
        stride: int = 1,
        padding: int | None = None,
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=norm_eps, momentum=norm_momentum)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.act(self.bn(self.conv(x)))
        return activated


class Residual(nn.Module):
    """x + second(first(x)), or without the addition."""

    __constants__: ClassVar[list[str]] = ["shortcut"]  # TorchScript drops the branch that is never taken

    def __init__(self, first: nn.Module, second: nn.Module, *, shortcut: bool = True) -> None:
        super().__init__()
        self.cv1 = first
        self.cv2 = second
        self.shortcut = shortcut
        if shortcut:
            self.skip_add = FloatFunctional()  # torch.add until the model is converted

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cv2(self.cv1(x))
        return self.skip_add.add(x, out) if self.shortcut else out


class Detector(nn.Module):
    """A backbone, a neck with heads on its three feature maps, and the decoding of the raw maps.

    In eval mode the output is float32 [N, boxes, 5 + classes]: centre x, centre y, width and height in pixels of the input,
    objectness and class probabilities in 0..1. Boxes are ordered by stride (8, 16, 32), anchor, row and column. In train mode
    it is the list of raw maps [N, anchors · (5 + classes), H, W], which a loss reads.
    """

    __constants__: ClassVar[list[str]] = ["strides", "xy_scales"]  # TorchScript reads only these class attributes
    strides: ClassVar[tuple[int, ...]] = (8, 16, 32)
    xy_scales: tuple[float, ...] = (1.0, 1.0, 1.0)  # factor by which a centre may lie outside of its cell (scale_x_y)

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def blocks(self) -> dict[str, ConvNormAct]:
        """Return the blocks of convolution, BatchNorm and activation by name, in their order of construction."""
        return {name: module for name, module in self.named_modules() if type(module) is ConvNormAct}

    def use_activations(self, names: Sequence[str]) -> None:
        """Replace the activation of each block, in the order of `blocks()`.

        Raises:
            ValueError: there are more or fewer names than blocks, or an activation has no such name.
        """
        for block, name in zip(self.blocks().values(), names, strict=True):
            block.act = make_activation(name)

    def anchors_per_cell(self) -> int:
        """Return the number of boxes per cell of a scale."""
        return self.prediction_layers()[0].out_channels // (BOX + self.num_classes)

    def classes_in(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        """Return the number of classes of a state dict with these shapes; None if its heads do not fit this model.

        A head has anchors · (5 + classes) channels.
        """
        names = {module: name for name, module in self.named_modules()}
        heads = {shapes.get(f"{names[layer]}.weight", ())[:1] for layer in self.prediction_layers()}
        channels = next(iter(heads))[0] if len(heads) == 1 and heads != {()} else 0
        classes, remainder = divmod(channels, self.anchors_per_cell())
        return None if remainder or classes <= BOX else classes - BOX

    def extract(self, x: Tensor) -> list[Tensor]:
        """Return the backbone's feature maps at strides 8, 16 and 32 of float32 [N, 3, H, W]."""
        raise NotImplementedError

    def predict(self, features: list[Tensor]) -> list[Tensor]:
        """Return the raw maps [N, anchors · (5 + classes), H, W] of the feature maps."""
        raise NotImplementedError

    def predicting_modules(self) -> list[nn.Module]:
        """Return all modules after the backbone."""
        raise NotImplementedError

    def prediction_layers(self) -> list[nn.Conv2d]:
        """Return the last convolution of each head, in the order of the strides."""
        raise NotImplementedError

    def anchor_sizes(self) -> Tensor:
        """Return the anchors' widths and heights in pixels, float32 [strides, anchors, 2]."""
        raise NotImplementedError

    def box_sizes(self, raw: Tensor, anchors: Tensor) -> Tensor:
        """Return widths and heights in pixels: the anchors times e^raw (Redmon and Farhadi 2018)."""
        return raw.exp() * anchors

    def forward(self, x: Tensor) -> Any:
        maps = self.predict(self.extract(x))
        if self.training:
            return maps
        return self.decode(maps)

    def decode(self, maps: list[Tensor]) -> Tensor:
        """Return the boxes [N, boxes, 5 + classes] of the raw maps."""
        anchors = self.anchor_sizes()
        levels = []
        for level, (stride, xy_scale) in enumerate(zip(self.strides, self.xy_scales)):  # noqa: B905  TorchScript does not support strict
            levels.append(self._decode_level(maps[level], stride, xy_scale, anchors[level]))
        return torch.cat(levels, 1)

    def _decode_level(self, raw: Tensor, stride: int, xy_scale: float, anchors: Tensor) -> Tensor:
        height, width = int(raw.shape[2]), int(raw.shape[3])
        values = int(raw.shape[1]) // len(anchors)  # 5 + classes
        raw = raw.reshape(-1, len(anchors), values, height, width).permute(0, 1, 3, 4, 2)
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        corners = torch.stack((columns, rows), 2).to(raw.dtype) - (xy_scale - 1) / 2
        centres = (raw[..., 0:2].sigmoid() * xy_scale + corners) * stride
        sizes = self.box_sizes(raw[..., 2:4], anchors.reshape(1, -1, 1, 1, 2))
        decoded = torch.cat((centres, sizes, raw[..., 4:].sigmoid()), 4)
        return decoded.reshape(-1, len(anchors) * height * width, values)


class QuantizableDetector(Detector):
    """A detector with quantization stubs: INT8 in the backbone ("backbone"), or everywhere but in the decoding ("whole").

    The decoding stays in float: one scale for pixels and probabilities would round the probabilities to zero.
    """

    def __init__(self, *args: Any, int8_scope: Int8Scope = "backbone", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.int8_scope = int8_scope
        self.quant = QuantStub()
        self.dequant = DeQuantStub()
        make_quantizable(self)
        for module in self.predicting_modules():
            if int8_scope == "backbone":
                module.qconfig = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Any:
        features = self.extract(self.quant(x))
        if self.int8_scope == "backbone":
            features = [self.dequant(feature) for feature in features]
        maps = self.predict(features)
        if self.int8_scope == "whole":
            maps = [self.dequant(raw) for raw in maps]
        if self.training:
            return maps
        return self.decode(maps)

    def float_convolutions(self) -> int:
        """Return the number of convolutions that stay in float after conversion."""
        if self.int8_scope == "whole":
            return 0
        return sum(isinstance(child, nn.Conv2d) for module in self.predicting_modules() for child in module.modules())

    def fuse_model(self, is_qat: bool | None = None) -> None:
        """Fuse convolution, BatchNorm, and ReLU (the only activation with a fused form) in the INT8 part."""
        parts = self.predicting_modules() if self.int8_scope == "backbone" else []
        stays = {child for part in parts for child in part.modules()}
        for module in self.modules():
            if type(module) is ConvNormAct and module not in stays:
                fuse_modules(module, ["conv", "bn", "act"] if type(module.act) is nn.ReLU else ["conv", "bn"], is_qat)


def darknet_layers(model: nn.Module) -> list[DarknetLayer]:
    """Return each convolution with its BatchNorm, in the order in which the modules were constructed."""
    modules = dict(model.named_modules())
    return [
        DarknetLayer(convolution=name, norm=f"{name.removesuffix('conv')}bn" if name.endswith(".conv") else None)
        for name, module in modules.items()
        if isinstance(module, nn.Conv2d)
    ]
