"""YOLOv5's own files: built as their classes say, compared with an implementation written from its description."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bundler.errors import CheckpointError
from bundler.models.checkpoints import LoadedWeights, load_weights
from bundler.models.registry import find_model, load_parser

NAME = "vendor_of_yolov5"
PICTURES = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def plain() -> Iterator[ModuleType]:
    """The vendor's classes, which are not there while a file is read."""
    path = Path(__file__).parent / "plain_yolov5.py"
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop(NAME, None)


@pytest.fixture
def read(plain: ModuleType, tmp_path: Path) -> Iterator[Callable[..., LoadedWeights]]:
    def save_and_load(payload: object, *, model: str = "yolov5n", num_classes: int | None = None) -> LoadedWeights:
        sys.modules[NAME] = plain
        torch.save(payload, tmp_path / "mine.pt")
        del sys.modules[NAME]
        _, variant = find_model(model)
        return load_weights(
            str(tmp_path / "mine.pt"),
            variant,
            parser=load_parser(variant),
            num_classes=num_classes,
            pictures=lambda: pytest.fail("only random weights need pictures"),
            seed=0,
        )

    yield save_and_load
    sys.modules[NAME] = plain


def outputs_of(loaded: LoadedWeights, model: str = "yolov5n") -> Tensor:
    parser = load_parser(find_model(model)[1])
    built = parser(num_classes=loaded.num_classes, **loaded.options, weights=loaded.state_dict)
    with torch.no_grad():
        outputs: Tensor = built.eval()(PICTURES)
    return outputs


def assert_computes(loaded: LoadedWeights, network: nn.Module) -> None:
    with torch.no_grad():
        expected = network(PICTURES)
    torch.testing.assert_close(outputs_of(loaded), expected, rtol=1e-3, atol=1e-3)


ACTIVATIONS: dict[str, nn.Module] = {
    "SiLU": nn.SiLU(),
    "LeakyReLU(0.1)": nn.LeakyReLU(0.1),
    "LeakyReLU(0.25)": nn.LeakyReLU(0.25, inplace=True),
    "ReLU": nn.ReLU(),
    "Hardswish": nn.Hardswish(),
    "Mish": nn.Mish(),
    "Identity": nn.Identity(),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_activation_is_the_one_that_the_file_names(
    name: str, plain: ModuleType, read: Callable[..., LoadedWeights]
) -> None:
    network = plain.randomized(plain.DetectionModel(7, activation=ACTIVATIONS[name]))
    loaded = read({"model": network, "ema": None, "epoch": -1})
    assert_computes(loaded, network)
    assert loaded.network is not None
    assert f"activations of the checkpoint: 57 {name};" in loaded.network
    assert (loaded.num_classes, loaded.class_names) == (3, ("cat", "dog", "bird"))


@pytest.mark.parametrize(("release", "residual"), [(3, nn.Hardswish()), (2, nn.LeakyReLU(0.1)), (4, None), (6, None)])
@pytest.mark.parametrize("fuse", [False, True])
def test_each_release_computes_what_it_did(
    release: int, residual: nn.Module | None, fuse: bool, plain: ModuleType, read: Callable[..., LoadedWeights]
) -> None:
    network = plain.randomized(plain.DetectionModel(release, activation=residual))
    assert_computes(read({"model": plain.fused(network) if fuse else network}), network)


def test_a_state_dict_of_release_5_is_built_with_what_is_assumed(plain: ModuleType, read: Callable[..., LoadedWeights]) -> None:
    network = plain.randomized(plain.DetectionModel(5))
    loaded = read(network.state_dict())
    assert_computes(loaded, network)
    assert loaded.network is not None
    assert "are assumed to be SiLU" in loaded.network
    with pytest.raises(CheckpointError, match="whose activations it does not name") as refusal:
        read(plain.DetectionModel(3).state_dict())
    assert ".pt" in refusal.value.next_step


def test_anchors_classes_and_eps_are_the_files(plain: ModuleType, read: Callable[..., LoadedWeights]) -> None:
    anchors = [[11, 14, 17, 31, 34, 24, 5, 6], [31, 62, 63, 46, 60, 120, 7, 8], [117, 91, 157, 199, 374, 327, 9, 99]]
    network = plain.randomized(plain.DetectionModel(7, nc=4, anchors=anchors, eps=1e-5))
    loaded = read({"model": network})
    assert (loaded.num_classes, loaded.class_names) == (4, ("cat", "dog", "bird", "bus"))
    assert_computes(loaded, network)
    usual_eps = plain.randomized(plain.DetectionModel(7, nc=4, anchors=anchors))
    assert_computes(read(usual_eps.state_dict()), usual_eps)


@pytest.mark.parametrize("wrapped", ["AutoShape", "both", "ensemble", "parallel"])
def test_what_is_wrapped_around_a_network_is_taken_off(
    wrapped: str, plain: ModuleType, read: Callable[..., LoadedWeights]
) -> None:
    network = plain.randomized(plain.DetectionModel(7, activation=nn.ReLU()))
    payload = {
        "AutoShape": plain.AutoShape(network),
        "both": plain.AutoShape(plain.DetectMultiBackend(network)),
        "ensemble": plain.Ensemble([network]),
        "parallel": {"model": nn.DataParallel(network)},
    }[wrapped]
    assert_computes(read(payload), network)


@pytest.mark.parametrize("state_dict", [False, True])
def test_a_number_of_classes_that_the_file_does_not_have(
    state_dict: bool, plain: ModuleType, read: Callable[..., LoadedWeights]
) -> None:
    network = plain.DetectionModel(7)
    payload = network.state_dict() if state_dict else {"model": network}
    assert read(payload).num_classes == read(payload, num_classes=3).num_classes == 3
    with pytest.raises(CheckpointError, match="has 3 classes, but --num-classes is 80") as refusal:
        read(payload, num_classes=80)
    assert "--num-classes 3" in refusal.value.next_step


def ema_of(plain: ModuleType, network: nn.Module) -> object:
    return {"model": plain.DetectionModel(7), "ema": network}


def test_the_average_of_the_training_goes_before_the_model(plain: ModuleType, read: Callable[..., LoadedWeights]) -> None:
    network = plain.randomized(plain.DetectionModel(7, activation=nn.Hardswish()))
    assert_computes(read(ema_of(plain, network)), network)


# What is refused


def elu(model: Any, _: ModuleType) -> None:
    model.model[3].act = nn.ELU()


def kernel(model: Any, _: ModuleType) -> None:
    model.model[9].m.kernel_size = 3


def upsample(model: Any, _: ModuleType) -> None:
    model.model[11].mode = "bilinear"


def dimension(model: Any, _: ModuleType) -> None:
    model.model[12].d = 2


def shortcut(model: Any, _: ModuleType) -> None:
    model.model[13].m[0].add = True


def dilation(model: Any, _: ModuleType) -> None:
    model.model[5].conv.dilation = (2, 2)


def eps(model: Any, _: ModuleType) -> None:
    model.model[7].bn.eps = 0.01


def stride(model: Any, _: ModuleType) -> None:
    model.model[24].stride = torch.tensor([4.0, 8.0, 16.0])


def source(model: Any, _: ModuleType) -> None:
    model.model[16].f = [-1, 2]


def ghost(model: Any, plain: ModuleType) -> None:
    model.model[1].__class__ = plain.GhostConv


def attention(model: Any, _: ModuleType) -> None:
    model.model[2].attention = nn.Sigmoid()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (elu, r"the activation torch\.nn\.modules\.activation\.ELU \(model\.3\.act\)"),
        (kernel, r"model\.9\.m \(MaxPool2d\) has kernel_size 3, not 5"),
        (upsample, r"model\.11 \(Upsample\) has mode bilinear, not nearest"),
        (dimension, r"model\.12 \(Concat\) has d 2, not 1"),
        (shortcut, r"model\.13\.m\.0 \(Bottleneck\) has add True, not False"),
        (dilation, r"model\.5\.conv \(Conv2d\) has dilation \(2, 2\)"),
        (eps, r"model\.7\.bn \(BatchNorm2d\) has eps 0\.01, not 0\.001"),
        (stride, r"model\.24 \(Detect\) has strides \(4\.0, 8\.0, 16\.0\)"),
        (source, r"model\.16 \(Concat\) has f \[-1, 2\], not \[-1, 4\]"),
        (ghost, r"model\.1 is a GhostConv, not a Conv"),
        (attention, r"model\.2\.attention is a Sigmoid, which the model does not have"),
    ],
)
def test_another_network_with_the_same_keys_and_shapes_is_refused_by_module_and_attribute(
    change: Callable[[Any, ModuleType], None], message: str, plain: ModuleType, read: Callable[..., LoadedWeights]
) -> None:
    network = plain.DetectionModel(7)
    change(network, plain)
    with pytest.raises(CheckpointError, match=message) as refusal:
        read({"model": network})
    assert refusal.value.next_step


def focus(model: Any, _: ModuleType) -> None:
    model.model[0].conv.conv.padding = (0, 0)


def pooling(model: Any, _: ModuleType) -> None:
    model.model[8].m[1].kernel_size = 7


def pixels(model: Any, _: ModuleType) -> None:
    model.model[24].anchor_grid *= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (focus, r"model\.0\.conv\.conv has padding \(0, 0\), a Focus has \(1, 1\)"),
        (pooling, r"model\.8 is an SPP over \(5, 7, 13\) cells"),
        (pixels, r"model\.24\.anchor_grid is not model\.24\.anchors times"),
    ],
)
def test_an_older_network_that_is_not_the_releases_is_refused(
    change: Callable[[Any, ModuleType], None], message: str, plain: ModuleType, read: Callable[..., LoadedWeights]
) -> None:
    network = plain.DetectionModel(5)
    change(network, plain)
    with pytest.raises(CheckpointError, match=message):
        read({"model": network})


def nested(model: Any, _plain: ModuleType) -> None:
    deep: Any = ()
    for _ in range(50):
        deep = (deep, deep)
    model.model[5].conv.dilation = deep


def pools(model: Any, plain: ModuleType) -> None:
    model.model[9].__class__ = plain.SPP
    model.model[9].m = nn.ModuleList([plain.SPP(4, 4)])


def itself(model: Any, _: ModuleType) -> None:
    model.model[2].m.add_module("again", model.model)


@pytest.mark.parametrize("change", [nested, pools, itself])
def test_a_file_that_nobody_would_write_is_refused(
    change: Callable[[Any, ModuleType], None], plain: ModuleType, read: Callable[..., LoadedWeights]
) -> None:
    network = plain.DetectionModel(7)
    change(network, plain)
    with pytest.raises(CheckpointError) as refusal:
        read({"model": network})
    assert len(refusal.value.message) < 400


@pytest.mark.parametrize(
    ("anchors", "channels", "message"),
    [
        (torch.zeros(1).expand(3, 10**6, 2), 24, r"its anchors have shape \[3, 1000000, 2\]"),
        (torch.ones(3, 3, 5), 24, r"its anchors have shape \[3, 3, 5\]"),
        (torch.ones(3, 3, 2), 25, "not a multiple of 3 anchors"),
        (torch.ones(3, 3, 2), 3 * 10**6, "heads for 999,995 classes; at most 10,000 are supported"),
    ],
)
def test_a_file_cannot_ask_for_a_network_without_bounds(
    anchors: Tensor, channels: int, message: str, plain: ModuleType, read: Callable[..., LoadedWeights]
) -> None:
    state_dict = plain.DetectionModel(7).state_dict()
    state_dict["model.24.anchors"] = anchors
    for index in range(3):
        state_dict[f"model.24.m.{index}.weight"] = torch.zeros(1).expand(channels, 1, 1, 1)
    with pytest.raises(CheckpointError, match=message):
        read(state_dict)


def test_another_size_is_named(plain: ModuleType, read: Callable[..., LoadedWeights]) -> None:
    for payload in ({"model": plain.DetectionModel(7, width=0.5)}, plain.DetectionModel(7, width=0.5).state_dict()):
        with pytest.raises(CheckpointError, match="is of a yolov5s, not of a yolov5n") as refusal:
            read(payload)
        assert "bundler bundle yolov5s" in refusal.value.next_step


def test_an_ensemble_is_named(plain: ModuleType, read: Callable[..., LoadedWeights]) -> None:
    with pytest.raises(CheckpointError, match="an ensemble of 2 networks"):
        read(plain.Ensemble([plain.DetectionModel(7), plain.DetectionModel(7)]))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("model.24.anchors", "model.24.proto.cv1.conv.weight"), "a YOLOv5-seg"),
        (("model.0.conv.weight", "model.9.linear.weight"), "a YOLOv5-cls"),
        (("model.22.dfl.conv.weight", "model.0.conv.weight"), "anchor-free head"),
        (("model.105.anchors", "model.0.conv.weight"), "head is module 105 instead of 24"),
        (("model.27.anchors", "model.0.conv.weight"), "a YOLOv5 of release 1"),
    ],
)
def test_the_state_dict_of_a_relative_is_named_by_its_keys(
    keys: tuple[str, ...], message: str, read: Callable[..., LoadedWeights]
) -> None:
    with pytest.raises(CheckpointError, match=message) as refusal:
        read({key: torch.zeros(3, 3, 2) for key in keys})
    assert "github.com/ultralytics/yolov5" in refusal.value.next_step


def test_four_detection_layers_are_named(read: Callable[..., LoadedWeights]) -> None:
    with pytest.raises(CheckpointError, match="P6: yolov5n6"):
        read({"model.33.anchors": torch.zeros(4, 3, 2), "model.0.conv.weight": torch.zeros(16, 3, 6, 6)})


def test_a_segmentation_head_is_named_by_its_class(plain: ModuleType, read: Callable[..., LoadedWeights]) -> None:
    network = plain.DetectionModel(7)
    network.model[24].__class__ = plain.Segment
    with pytest.raises(CheckpointError, match=r"a YOLOv5-seg \(instance segmentation\)"):
        read({"model": network})


@pytest.mark.parametrize(
    ("file", "message"), [("yolov5nu.yaml", "a YOLOv5u"), ("yolov8n.yaml", r"\(yolov8n\.yaml, head Detect\)")]
)
def test_a_network_of_the_ultralytics_package_is_named(
    file: str, message: str, plain: ModuleType, read: Callable[..., LoadedWeights], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = plain.DetectionModel(7)
    network.yaml = {"yaml_file": file}
    package = ModuleType("ultralytics.nn.tasks")
    package.DetectionModel = type(network)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ultralytics", ModuleType("ultralytics"))
    monkeypatch.setitem(sys.modules, "ultralytics.nn", ModuleType("ultralytics.nn"))
    monkeypatch.setitem(sys.modules, "ultralytics.nn.tasks", package)
    monkeypatch.setattr(type(network), "__module__", "ultralytics.nn.tasks")
    with pytest.raises(CheckpointError, match=message) as refusal:
        read({"model": network})
    assert "`u`" in refusal.value.next_step
