"""YOLOv5 of releases 2 to 7 as its repository describes it: lists of [from, number, module, arguments], in plain torch.

Written for tests, to be pickled and to be compared with; nothing of the package is used.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Conv(nn.Module):
    activation: nn.Module = nn.SiLU()

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, p: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2 if p is None else p, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        self.act = self.activation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.bn(self.conv(x)) if hasattr(self, "bn") else self.conv(x))
        return y


class GhostConv(Conv):
    pass


class Bottleneck(nn.Module):
    def __init__(self, c: int, shortcut: bool) -> None:
        super().__init__()
        self.cv1, self.cv2, self.add = Conv(c, c, 1), Conv(c, c, 3), shortcut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))
        return y


class C3(nn.Module):
    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True) -> None:
        super().__init__()
        c = c2 // 2
        self.cv1, self.cv2, self.cv3 = Conv(c1, c), Conv(c1, c), Conv(2 * c, c2)
        self.m = nn.Sequential(*(Bottleneck(c, shortcut) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))
        return y


class BottleneckCSP(nn.Module):
    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True) -> None:
        super().__init__()
        c = c2 // 2
        self.cv1, self.cv4 = Conv(c1, c), Conv(2 * c, c2)
        self.cv2, self.cv3 = nn.Conv2d(c1, c, 1, bias=False), nn.Conv2d(c, c, 1, bias=False)
        self.bn, self.act = nn.BatchNorm2d(2 * c), nn.LeakyReLU(0.1, inplace=True)
        self.m = nn.Sequential(*(Bottleneck(c, shortcut) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv4(self.act(self.bn(torch.cat((self.cv3(self.m(self.cv1(x))), self.cv2(x)), 1))))
        return y


class SPP(nn.Module):
    def __init__(self, c1: int, c2: int, k: tuple[int, ...] = (5, 9, 13)) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(c1, c1 // 2), Conv(c1 // 2 * (len(k) + 1), c2)
        self.m = nn.ModuleList([nn.MaxPool2d(kernel_size=x, stride=1, padding=x // 2) for x in k])

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        y: Tensor = self.cv2(torch.cat([x] + [m(x) for m in self.m], 1))
        return y


class SPPF(nn.Module):
    def __init__(self, c1: int, c2: int, k: int = 5) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(c1, c1 // 2), Conv(c1 * 2, c2)
        self.m = nn.MaxPool2d(kernel_size=k, stride=1, padding=k // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        y1 = self.m(x)
        y2 = self.m(y1)
        y: Tensor = self.cv2(torch.cat((x, y1, y2, self.m(y2)), 1))
        return y


class Focus(nn.Module):
    def __init__(self, c1: int, c2: int, k: int) -> None:
        super().__init__()
        self.conv = Conv(c1 * 4, c2, k)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1))
        return y


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.d = 1

    def forward(self, x: list[Tensor]) -> Tensor:
        return torch.cat(x, self.d)


class Detect(nn.Module):
    anchors: Tensor

    def __init__(self, nc: int, anchors: list[list[float]], ch: list[int], *, anchor_grid: bool) -> None:
        super().__init__()
        self.nc, self.no, self.nl, self.na = nc, nc + 5, len(anchors), len(anchors[0]) // 2
        self.stride = 8.0 * 2 ** torch.arange(self.nl)
        pixels = torch.tensor(anchors).float().view(self.nl, -1, 2)
        self.register_buffer("anchors", pixels / self.stride.view(-1, 1, 1))
        if anchor_grid:
            self.register_buffer("anchor_grid", pixels.view(self.nl, 1, -1, 1, 1, 2).clone())
        self.m = nn.ModuleList(nn.Conv2d(c, self.no * self.na, 1) for c in ch)

    def forward(self, x: list[Tensor]) -> Tensor:
        z = []
        for i in range(self.nl):
            y = self.m[i](x[i])
            bs, _, ny, nx = y.shape
            y = y.view(bs, self.na, self.no, ny, nx).permute(0, 1, 3, 4, 2).sigmoid()
            yv, xv = torch.meshgrid(torch.arange(ny), torch.arange(nx), indexing="ij")
            grid = torch.stack((xv, yv), 2).float()
            xy = (y[..., 0:2] * 2 - 0.5 + grid) * self.stride[i]
            wh = (y[..., 2:4] * 2) ** 2 * (self.anchors[i] * self.stride[i]).view(1, self.na, 1, 1, 2)
            z.append(torch.cat((xy, wh, y[..., 4:]), -1).reshape(bs, -1, self.no))
        return torch.cat(z, 1)


class Segment(Detect):
    pass


ANCHORS: list[list[float]] = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]


def description(release: int) -> list[list[Any]]:
    stage = "BottleneckCSP" if release < 4 else "C3"
    older: list[list[Any]] = [
        [-1, 1, "Focus", [64, 3]],
        [-1, 1, "Conv", [128, 3, 2]],
        [-1, 3, stage, [128]],
        [-1, 1, "Conv", [256, 3, 2]],
        [-1, 9, stage, [256]],
        [-1, 1, "Conv", [512, 3, 2]],
        [-1, 9, stage, [512]],
        [-1, 1, "Conv", [1024, 3, 2]],
        [-1, 1, "SPP", [1024, (5, 9, 13)]],
        [-1, 3, stage, [1024, False]],
    ]
    newer: list[list[Any]] = [
        [-1, 1, "Conv", [64, 6, 2, 2]],
        *older[1:4],
        [-1, 6, stage, [256]],
        *older[5:8],
        [-1, 3, stage, [1024]],
        [-1, 1, "SPPF", [1024, 5]],
    ]
    head: list[list[Any]] = [
        [-1, 1, "Conv", [512, 1, 1]],
        [-1, 1, "Upsample", []],
        [[-1, 6], 1, "Concat", []],
        [-1, 3, stage, [512, False]],
        [-1, 1, "Conv", [256, 1, 1]],
        [-1, 1, "Upsample", []],
        [[-1, 4], 1, "Concat", []],
        [-1, 3, stage, [256, False]],
        [-1, 1, "Conv", [256, 3, 2]],
        [[-1, 14], 1, "Concat", []],
        [-1, 3, stage, [512, False]],
        [-1, 1, "Conv", [512, 3, 2]],
        [[-1, 10], 1, "Concat", []],
        [-1, 3, stage, [1024, False]],
        [[17, 20, 23], 1, "Detect", []],
    ]
    return [*(older if release < 6 else newer), *head]


class DetectionModel(nn.Module):
    def __init__(
        self,
        release: int,
        *,
        nc: int = 3,
        activation: nn.Module | None = None,
        depth: float = 0.33,
        width: float = 0.25,
        anchors: list[list[float]] = ANCHORS,
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        Conv.activation = nn.SiLU() if activation is None else activation
        channels, layers = [3], []
        for index, (source, number, kind, arguments) in enumerate(description(release)):
            c1: Any = channels[source] if isinstance(source, int) else [channels[x] for x in source]
            times = max(round(number * depth), 1)
            module: nn.Module
            if kind == "Concat":
                module, c2 = Concat(), sum(c1)
            elif kind == "Upsample":
                module, c2 = nn.Upsample(None, 2, "nearest"), c1
            elif kind == "Detect":
                module, c2 = Detect(nc, anchors, c1, anchor_grid=release < 6), 0
            else:
                c2 = math.ceil(arguments[0] * width / 8) * 8
                repeats = [times] if kind in {"C3", "BottleneckCSP"} else []
                module = globals()[kind](c1, c2, *repeats, *arguments[1:])
            module.i, module.f, module.type = index, source, f"models.common.{kind}"  # type: ignore[assignment]
            layers.append(module)
            channels = [*channels, c2] if index else [c2]
        self.model = nn.Sequential(*layers)
        self.names = ["cat", "dog", "bird", "bus"][:nc] if nc <= 4 else [str(number) for number in range(nc)]
        self.yaml = {"nc": nc, "backbone": description(release)[:10]}
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eps, m.momentum = eps, 0.03

    def forward(self, x: Tensor) -> Tensor:
        y: list[Tensor] = []
        m: Any  # with the attributes of `__init__`
        for m in self.model:
            x = m(x if m.f == -1 else [x if j == -1 else y[j] for j in m.f])
            y.append(x)
        return x


class AutoShape(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class DetectMultiBackend(AutoShape):
    pass


class Ensemble(nn.ModuleList):
    pass


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill a network with seeded numbers with which its outputs depend on every part."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.Conv2d):
                m.weight.copy_(torch.randn(m.weight.shape, generator=generator) / m.weight[0].numel() ** 0.5)
                if m.bias is not None:
                    m.bias.copy_(torch.randn(m.bias.shape, generator=generator))
            elif isinstance(m, nn.BatchNorm2d):
                m.weight.copy_(torch.rand(m.weight.shape, generator=generator) + 0.5)
                m.bias.copy_(torch.randn(m.bias.shape, generator=generator) * 0.3)
                m.running_mean.copy_(torch.randn(m.bias.shape, generator=generator) * 0.1)  # type: ignore[union-attr]
                m.running_var.copy_(torch.rand(m.bias.shape, generator=generator) + 0.5)  # type: ignore[union-attr]
    return model.eval()


def fused(model: nn.Module) -> nn.Module:
    """Do what Ultralytics' `fuse` does: fold each BatchNorm into its convolution, which gets a bias."""
    for m in model.modules():
        if isinstance(m, Conv):
            mean, variance, old = m.bn.running_mean, m.bn.running_var, m.conv
            assert mean is not None
            assert variance is not None
            scale = m.bn.weight / torch.sqrt(variance + m.bn.eps)
            options: dict[str, Any] = {"kernel_size": old.kernel_size, "stride": old.stride, "padding": old.padding}
            conv = nn.Conv2d(old.in_channels, old.out_channels, **options, bias=True)
            assert conv.bias is not None
            with torch.no_grad():
                conv.weight.copy_(old.weight * scale.view(-1, 1, 1, 1))
                conv.bias.copy_(m.bn.bias - mean * scale)
            m.conv = conv
            del m.bn
    return model
