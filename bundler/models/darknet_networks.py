"""The layers of yolov3.cfg and yolov4.cfg, and the settings of a cfg that has the same layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bundler.models.activation_modules import leaky_relu
from bundler.models.darknet_cfg import DarknetArchitecture, DarknetSection, parse_cfg
from bundler.models.detector import BOX
from bundler.models.detector_file import MOST_ANCHORS, MOST_CLASSES

__all__ = ["DarknetNetwork", "read_cfg"]

_ACTIVATIONS = {"leaky": leaky_relu(0.1), "mish": "Mish", "relu": "ReLU", "swish": "SiLU", "linear": "Identity"}
_BUILT = "Supported are the layers of yolov3.cfg and yolov4.cfg, with other activations, anchors and classes."

_CONVOLUTION_FLAGS = (
    *("antialiasing", "assisted_excitation", "cbn", "binary", "xnor", "bin_output", "sway", "rotate", "stretch"),
    *("stretch_sway", "flipped", "reverse", "coordconv", "dontload", "dontloadscales"),
)
# Options of Darknet that change a layer's computation or the storage of its weights, with the value that has no effect.
_UNCHANGED: Mapping[str, Mapping[str, float]] = {
    "convolutional": dict.fromkeys(_CONVOLUTION_FLAGS, 0),
    "route": {"groups": 1, "group_id": 0},
    "upsample": {"scale": 1, "reverse": 0},
    "maxpool": {"maxpool_depth": 0, "antialiasing": 0, "maxpool_zero_nonmax": 0},
    "yolo": {"new_coords": 0},
}

# Unsupported networks by their numbers of convolutions and of [yolo] sections, to name them in messages.
_RELATIVES = {
    (13, 2): "yolov3-tiny",
    (21, 2): "yolov4-tiny",
    (24, 3): "yolov4-tiny-3l",
    (76, 3): "yolov3-spp",
}


@dataclass(frozen=True, kw_only=True)
class DarknetNetwork:
    """The settings in a cfg; `size` is the height and width of its input in pixels."""

    architecture: DarknetArchitecture
    num_classes: int
    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A layer: its kind, and its numbers in the order of `_facts`. Source layers are numbered from 0."""

    kind: str
    facts: tuple[int, ...]


class _Layers:
    """Builds a list of layers; each method returns the index of the layer that it adds."""

    def __init__(self) -> None:
        self.layers: list[_Layer] = []

    def add(self, kind: str, *facts: int) -> int:
        self.layers.append(_Layer(kind=kind, facts=facts))
        return len(self.layers) - 1

    def conv(self, filters: int, size: int, stride: int = 1) -> int:
        return self.add("convolutional", filters, size, stride, 1)

    def convs(self, width: int, count: int) -> int:
        """Add alternately 1 x 1 convolutions of `width` filters and 3 x 3 ones of twice as many."""
        for index in range(count):
            last = self.conv(width * (1 + index % 2), 1 + 2 * (index % 2))
        return last

    def residual(self, hidden: int, width: int) -> int:
        before = len(self.layers) - 1
        self.conv(hidden, 1)
        self.conv(width, 3)
        return self.add("shortcut", before)

    def route(self, *sources: int) -> int:
        return self.add("route", *sources)

    def head(self, width: int) -> None:
        """Add a head; the filters of its last convolution depend on anchors and classes and are checked separately."""
        self.conv(width, 3)
        self.add("convolutional", 0, 1, 1, 0)
        self.add("yolo")


def _yolov3() -> list[_Layer]:
    layers = _Layers()
    layers.conv(32, 3)
    features, mixed = [], 0
    for width, depth in zip((64, 128, 256, 512, 1024), (1, 2, 8, 8, 4), strict=True):
        layers.conv(width, 3, 2)
        features.append([layers.residual(width // 2, width) for _ in range(depth)][-1])
    for width, lateral in ((512, None), (256, features[3]), (128, features[2])):
        if lateral is not None:
            layers.route(mixed)
            layers.conv(width, 1)
            layers.route(layers.add("upsample", 2), lateral)
        mixed = layers.convs(width, 5)
        layers.head(2 * width)
    return layers.layers


def _yolov4() -> list[_Layer]:
    layers = _Layers()
    layers.conv(32, 3)
    features = []
    for width, depth, half in zip((64, 128, 256, 512, 1024), (1, 2, 8, 8, 4), (64, 64, 128, 256, 512), strict=True):
        down = layers.conv(width, 3, 2)
        past = layers.conv(half, 1)
        layers.route(down)
        layers.conv(half, 1)
        for _ in range(depth):
            layers.residual(32 if width == 64 else half, half)
        layers.route(layers.conv(half, 1), past)
        features.append(layers.conv(width, 1))
    pooled = layers.convs(512, 3)
    pools: list[int] = []
    for size in (5, 9, 13):
        if pools:
            layers.route(pooled)
        pools.append(layers.add("maxpool", size, 1))
    layers.route(*reversed(pools), pooled)
    coarse = layers.convs(512, 3)
    middle = _up(layers, 256, features[3])
    fine = _up(layers, 128, features[2])
    layers.head(256)
    for width, wider in ((256, middle), (512, coarse)):
        layers.route(fine)
        layers.route(layers.conv(width, 3, 2), wider)
        fine = layers.convs(width, 5)
        layers.head(2 * width)
    return layers.layers


def _up(layers: _Layers, width: int, fine: int) -> int:
    """Add the upsampling path from the last layer to the next finer scale."""
    layers.conv(width, 1)
    up = layers.add("upsample", 2)
    layers.route(fine)
    layers.route(layers.conv(width, 1), up)
    return layers.convs(width, 5)


_NETWORKS: Mapping[str, tuple[Callable[[], list[_Layer]], tuple[int, int, int]]] = {
    "yolov3": (_yolov3, (32, 16, 8)),
    "yolov4": (_yolov4, (8, 16, 32)),
}  # with the strides of their [yolo] sections in the order of the cfg


def read_cfg(content: bytes, model: str, *, source: str) -> DarknetNetwork:
    """Return the settings of a cfg that has the layers of `model`.

    Args:
        content: of the file.
        model: "yolov3" or "yolov4".
        source: the file's name in messages.

    Raises:
        CheckpointError: it cannot be read, or has other layers; the message names the line.
    """
    net, *sections = parse_cfg(content, source=source)
    if net.integer("channels", 3) != 3:
        raise net.error(
            "channels",
            f"the network's input has {net.integer('channels', 3)} channels; only RGB (3) is supported",
            next_step=_BUILT,
        )
    make, strides = _NETWORKS[model]
    expected = make()
    for index, (section, layer) in enumerate(zip(sections, expected, strict=False)):
        _refuse_other_layer(section, index, layer, model, sections)
    if len(sections) != len(expected):
        line = sections[len(expected)] if len(sections) > len(expected) else (sections or [net])[-1]
        reason = f"the cfg has {len(sections)} layers, {model} has {len(expected)}{_relative(sections)}"
        raise line.error("", reason, next_step=_BUILT)
    heads = {stride: _head(section) for stride, section in zip(strides, _of_kind(sections, "yolo"), strict=True)}
    predictions = [sections[index - 1] for index, section in enumerate(sections) if section.kind == "yolo"]
    _, first = heads[strides[0]]
    for prediction, (yolo, found) in zip(predictions, heads.values(), strict=True):
        if found[0] != first[0] or len(found[1]) != len(first[1]):
            counts = f"{found[0]} classes and {len(found[1])} masks, but the first one {first[0]} and {len(first[1])}"
            raise yolo.error("classes", f"this [yolo] has {counts}", next_step=_BUILT)
        if (filters := prediction.integer("filters", 1)) != (channels := len(found[1]) * (BOX + found[0])):
            counts = f"{len(found[1])} masks x ({BOX} + {found[0]} classes) are {channels}"
            raise prediction.error("filters", f"filters={filters} before a [yolo] section, but {counts}")
    scales = [heads[stride] for stride in sorted(strides)]
    return DarknetNetwork(
        architecture=DarknetArchitecture(
            anchors=tuple(found[1] for _, found in scales),
            xy_scales=tuple(_xy_scale(yolo) for yolo, _ in scales),
            activations=tuple(
                _ACTIVATIONS[section.text("activation", "")]
                for section in _of_kind(sections, "convolutional")
                if section.integer("batch_normalize", 0)
            ),
        ),
        num_classes=first[0],
        size=(net.integer("height", 0), net.integer("width", 0)),
    )


def _of_kind(sections: list[DarknetSection], kind: str) -> list[DarknetSection]:
    return [section for section in sections if section.kind == kind]


def _refuse_other_layer(section: DarknetSection, index: int, layer: _Layer, model: str, sections: list[DarknetSection]) -> None:
    if section.kind != layer.kind:
        reason = f"layer {index} is [{section.kind[:40]}], not [{layer.kind}] as in {model}{_relative(sections)}"
        raise section.error("", reason, next_step=_BUILT)
    for key, value in _UNCHANGED.get(section.kind, {}).items():
        if section.number(key, value) != value:
            reason = f"{key}={section.text(key, '')[:40]} in layer {index} is not supported"
            raise section.error(key, reason, next_step=_BUILT)
    for (key, found), expected in zip(_facts(section, index), layer.facts, strict=False):
        if found != expected and not (key == "filters" and expected == 0):
            reason = f"{key} of layer {index} [{section.kind}] is {found}, not {expected} as in {model}{_relative(sections)}"
            raise section.error(key, reason, next_step=_BUILT)
    count = len(_facts(section, index))
    if layer.facts and count != len(layer.facts):
        reason = f"layer {index} [{section.kind}] reads {count} layers, not {len(layer.facts)} as in {model}"
        raise section.error("", f"{reason}{_relative(sections)}", next_step=_BUILT)
    if section.kind in {"convolutional", "shortcut"}:
        _refuse_other_activation(section, index, layer)


def _refuse_other_activation(section: DarknetSection, index: int, layer: _Layer) -> None:
    normalized = section.kind == "convolutional" and layer.facts[-1] == 1
    activation = section.text("activation", "logistic" if section.kind == "convolutional" else "linear")
    if activation not in _ACTIVATIONS or (not normalized and activation != "linear"):
        allowed = ", ".join(_ACTIVATIONS) if normalized else "linear"
        reason = f"activation={activation[:40]} of layer {index} [{section.kind}] is not supported (supported: {allowed})"
        raise section.error("activation", reason, next_step=_BUILT)


def _facts(section: DarknetSection, index: int) -> list[tuple[str, int]]:
    """Return the compared numbers of a layer with their keys; source layers are numbered from 0."""
    match section.kind:
        case "convolutional":
            return _convolution(section)
        case "shortcut":
            if (kind := section.text("weights_type", "none")) != "none":
                raise section.error("weights_type", f"weights_type={kind[:40]} is not supported", next_step=_BUILT)
            return _sources(section, "from", index)
        case "route":
            return _sources(section, "layers", index)
        case "upsample":
            return [("stride", section.integer("stride", 2))]
        case "maxpool":
            stride = section.integer("stride", 1)
            size = section.integer("size", stride)
            if section.integer("padding", size - 1) != size - 1:
                raise section.error("padding", f"padding={section.text('padding', '')[:40]} is not supported", next_step=_BUILT)
            return [("size", size), ("stride", _one_stride(section, stride))]
    return []


def _convolution(section: DarknetSection) -> list[tuple[str, int]]:
    size = section.integer("size", 1)
    padding = size // 2 if section.integer("pad", 0) else section.integer("padding", 0)
    for key, found, expected in (
        ("padding", padding, size // 2),
        ("groups", section.integer("groups", 1), 1),
        ("dilation", 1 if size == 1 else section.integer("dilation", 1), 1),
    ):
        if found != expected:
            raise section.error(key, f"{key} of the convolution is {found}; only {expected} is supported", next_step=_BUILT)
    if "share_index" in section.options:
        raise section.error("share_index", "a convolution that shares its weights is not supported", next_step=_BUILT)
    return [
        ("filters", section.integer("filters", 1)),
        ("size", size),
        ("stride", _one_stride(section, section.integer("stride", 1))),
        ("batch_normalize", int(section.integer("batch_normalize", 0) != 0)),
    ]


def _one_stride(section: DarknetSection, stride: int) -> int:
    """Return the stride, which must be the same in both directions."""
    for key in ("stride_x", "stride_y"):
        if section.integer(key, stride) != stride:
            raise section.error(
                key, f"{key}={section.integer(key, stride)} with stride {stride} is not supported", next_step=_BUILT
            )
    return stride


def _sources(section: DarknetSection, key: str, index: int) -> list[tuple[str, int]]:
    sources = [source if source >= 0 else index + source for source in section.integers(key)]
    if not sources or not all(0 <= source < index for source in sources):
        value = section.text(key, "")[:40]
        raise section.error(key, f"{key}={value} of layer {index} [{section.kind}] names a layer that does not come before it")
    return [(key, source) for source in sources]


Head = tuple[DarknetSection, tuple[int, tuple[tuple[float, float], ...]]]


def _head(section: DarknetSection) -> Head:
    """Return a [yolo] section with its classes and the anchors that its `mask` selects, or all."""
    classes, count = section.integer("classes", 20), section.integer("num", 1)
    flat = section.numbers("anchors")
    mask = section.integers("mask") or tuple(range(max(min(count, len(flat)), 0)))
    if not 1 <= classes <= MOST_CLASSES:
        raise section.error("classes", f"classes={classes} is not between 1 and {MOST_CLASSES}")
    if len(flat) != 2 * count or min(flat, default=0) <= 0:
        found = section.text("anchors", "")[:60]
        reason = f"anchors must be {2 * count} positive numbers, the widths and heights of num={count} anchors (got {found})"
        raise section.error("anchors", reason)
    if not 1 <= len(mask) <= MOST_ANCHORS or not all(0 <= number < count for number in mask):
        raise section.error("mask", f"mask={section.text('mask', '')[:40]} does not select from num={count} anchors")
    return section, (classes, tuple((flat[2 * number], flat[2 * number + 1]) for number in mask))


def _xy_scale(section: DarknetSection) -> float:
    scale = section.number("scale_x_y", 1)
    if not 0 < scale <= 10:
        raise section.error("scale_x_y", f"scale_x_y={scale:g} is not between 0 and 10")
    return scale


def _relative(sections: list[DarknetSection]) -> str:
    """Return the counts of the sections in parentheses, with the name of the network that has them."""
    counts = len(_of_kind(sections, "convolutional")), len(_of_kind(sections, "yolo"))
    name = _RELATIVES.get(counts)
    found = f"{counts[0]} convolutions and {counts[1]} [yolo] sections"
    return f" (the file has {found}, like {name})" if name else f" (the file has {found})"
